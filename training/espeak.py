"""How espeak-ng says a text: phonemes in the International Phonetic Alphabet.

https://github.com/espeak-ng/espeak-ng (speak_lib.h); the library and its voices come with the package espeakng_loader.
"""

import ctypes
import functools
import re
import threading
from typing import Any

_SYNCHRONOUS, _STAYS = 2, 0x8000  # of espeak_Initialize: no sound device is opened; an error does not end the process
_UTF8, _IPA = 1, 2
_VOICES = {"zh": "cmn", "no": "nb"}  # where espeak-ng has another code than ISO 639-1
_SWITCH = re.compile(r"\([a-z]{2,3}(-[a-z]+)*\)")  # to another language within a text and back
_lock = threading.Lock()  # the library has one state in a process
_spoken: str | None = None


def phonemes(text: str, language: str) -> str:
    """IPA, words divided by blanks; empty where there is nothing to say.

    Raises:
        ValueError: there is no voice of that language (ISO 639-1).
    """
    with _lock:
        library = _library()
        _speak(library, _VOICES.get(language, language))
        left, clauses = ctypes.c_char_p(text.encode()), []
        while left.value:
            clauses.append((library.espeak_TextToPhonemes(ctypes.byref(left), _UTF8, _IPA) or b"").decode())
    return " ".join(_SWITCH.sub("", " ".join(clauses)).split())


def _speak(library: Any, voice: str) -> None:
    global _spoken
    if voice != _spoken:
        _spoken = None
        if library.espeak_SetVoiceByName(voice.encode()):
            raise ValueError(f"espeak-ng has no voice for {voice!r}")
        _spoken = voice


@functools.cache
def _library() -> Any:
    import espeakng_loader

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    data = espeakng_loader.get_data_path().encode()
    if library.espeak_Initialize(_SYNCHRONOUS, 0, data, _STAYS) < 0:
        raise RuntimeError(f"espeak-ng does not start with its data in {data.decode()}: install espeakng-loader again")
    library.espeak_TextToPhonemes.restype = ctypes.c_char_p
    return library
