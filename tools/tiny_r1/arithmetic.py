"""Written arithmetic: one operation as the lines a careful pupil writes, high digits first.

What: every helper returns lines such as `82 - 30 = 52`, each one small enough for a table in a
tiny model's weights (at most one operand has more than one non-zero digit that matters).
Why high digits first: each line's result is the next line's left operand, so the model copies
what it just wrote and adds one digit; units-first needs carries that are never written down.
Source: our own trials; the order was the difference between 87 % and nothing learnt.
"""

LARGEST_TABLE_QUOTIENT = 10  # quotients up to here are one line: the multiplication table


def decimal_parts(number: int) -> list[int]:
    """The non-zero decimal parts, high to low: 208 -> [200, 8]; zero gives no part."""
    digits = str(number)
    parts = [int(digit) * 10**power for power, digit in enumerate(reversed(digits))]
    return [part for part in reversed(parts) if part]


def add_lines(left: int, right: int) -> list[str]:
    """Lines of `left + right`, adding the parts of `right` one by one."""
    lines = []
    for part in decimal_parts(right):
        lines.append(f"{left} + {part} = {left + part}")
        left += part
    return lines


def subtract_lines(left: int, right: int) -> list[str]:
    """Lines of `left - right`, taking the parts of `right` away one by one."""
    lines = []
    for part in decimal_parts(right):
        lines.append(f"{left} - {part} = {left - part}")
        left -= part
    return lines


def multiply_lines(digit: int, number: int) -> list[str]:
    """Lines of `digit * number` for a one-digit factor: partial products, then their sum."""
    assert 0 < digit < 10, digit
    products = [(part, digit * part) for part in decimal_parts(number)]
    lines = [f"{digit} * {part} = {product}" for part, product in products]
    total = products[0][1]
    for _, product in products[1:]:
        lines += add_lines(total, product)
        total += product
    return lines


def divide_lines(number: int, divisor: int) -> list[str]:
    """Lines of the exact `number / divisor`: table quotients in one line, others by parts."""
    quotient, remainder = divmod(number, divisor)
    assert remainder == 0, (number, divisor)
    if quotient <= LARGEST_TABLE_QUOTIENT:
        return [f"{number} / {divisor} = {quotient}"]
    tens, units = quotient - quotient % 10, quotient % 10
    lines = [f"{divisor} * {tens} = {divisor * tens}"]
    if units:
        rest = number - divisor * tens
        lines += subtract_lines(number, divisor * tens)
        lines += [f"{rest} / {divisor} = {units}", f"{tens} + {units} = {quotient}"]
    return lines


def remainder_lines(number: int, divisor: int) -> list[str]:
    """Lines of `number mod divisor`: take away the largest multiples, tens before units."""
    lines = []
    for part in decimal_parts(number // divisor):
        lines.append(f"{divisor} * {part} = {divisor * part}")
        lines += subtract_lines(number, divisor * part)
        number -= divisor * part
    return lines
