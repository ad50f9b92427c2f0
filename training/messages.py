"""What people are told of an error: in its own words where those are for people, and in one line."""

_LONGEST = 500  # characters of a message


def one_line(message: str, longest: int = _LONGEST) -> str:
    """A message without line breaks and control characters, cut in its middle: what to do stands at its end."""
    if len(message) <= longest and message.isprintable() and " ".join(message.split()) == message:
        return message  # as nearly all are
    line = " ".join("".join(c if c.isprintable() else " " for c in _cut(message, 10 * longest)).split())
    return _cut(line, longest)


def _cut(text: str, longest: int) -> str:
    half = longest // 2
    return text if len(text) <= longest else f"{text[: half - 1]} … {text[-(half - 2) :]}"


def words_of(error: BaseException) -> str:
    """What an error says; after its class, unless it is of those that say what happened by themselves."""
    said, name = str(error).strip(), type(error).__name__
    if said and isinstance(error, ValueError | OSError | RuntimeError):
        return said
    return f"{name}: {said}" if said else name
