"""The model card of a published artifact, and the small files beside it, from its manifest."""
