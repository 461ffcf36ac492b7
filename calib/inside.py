"""Files of a folder that a stranger filled: a link in it must not lead to files of the user.

The Hub's cache is made of links: `models--owner--name/snapshots/COMMIT/file` points to
`models--owner--name/blobs/HASH`. Those lead to what was downloaded with them.
"""

from pathlib import Path

_SNAPSHOTS = "snapshots"


def leads_outside(folder: Path, name: str) -> bool:
    """Whether the file of that name in `folder` is, by links, one that lies somewhere else."""
    home = folder.resolve()
    if home.parent.name == _SNAPSHOTS:
        home = home.parent.parent
    return not (folder / name).resolve().is_relative_to(home)
