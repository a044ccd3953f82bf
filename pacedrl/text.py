"""Text of unknown origin, made fit to show."""


def plain(text: object) -> str:
    """Return a text in one line; characters that control or turn the direction of writing appear as their codes."""
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in str(text))


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
