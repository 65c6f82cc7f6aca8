"""Spoken digits, read from the shipped bank or synthesised by espeak-ng (extra `espeak`).

The bank gives the same bytes on every machine. espeak's depend on the C library: those of glibc
2.36 and 2.43 differ.
`python -m furnace_hpc.data.sets.tridigits.speech --write-bank` makes the bank. It needs the extra.
"""

import argparse
import ctypes
import json
import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from furnace_hpc.config.errors import ConfigError, nearest

Wave = NDArray[np.float32]
Source = Literal["espeak", "bank"]
SAMPLE_RATE = 16_000  # Hz
WINDOW_SAMPLES = 20_000  # 1.25 s, the longest utterance
BANK = Path(__file__).with_name("speech_bank.ogg")
BANK_SAMPLE_RATE = 12_000  # Hz: smaller by a quarter, and more exact, than Vorbis at 16 kHz
BANK_SEED = 20261123
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# espeak-ng 1.52 has no "en-gb" with a variant: it returns an error and keeps the previous voice.
ACCENTS = ("en-us", "en-gb-x-rp", "en-gb-scotland")
# The variants of espeak-ng 1.52 without the robotic, whispered and croaking ones.
_VOICE_NAMES = """
    Alex Alicia Andrea Andy Annie AnxiousAndy Denis Diogo Gene Gene2 Henrique Hugo Jacky Lee Marco
    Mario Michael Mike Mr_serious Nguyen Reed RicishayMax RicishayMax2 RicishayMax3 Storm Tweaky
    adam anika announcer antonio aunty belinda benjamin boris caleb david ed edward edward2 f1 f2 f3
    f4 f5 grandma grandpa gustave ian iven iven2 iven3 iven4 john kaukovalta linda m1 m2 m3 m4 m5 m6
    m7 m8 marcelo max michel miguel mike2 norbert pablo paul pedro quincy rob robert sandro shelby
    steph steph2 steph3 travis victor zac
"""
VOICES = tuple(_VOICE_NAMES.split())  # with an underscore for a space


@dataclass(frozen=True)
class SpeechRequest:
    """A digit to speak: rate in words per minute, pitch 0 to 99 (50 is the voice's default)."""

    voice: str
    accent: str
    digit: int
    rate: int
    pitch: int


@dataclass(frozen=True)
class Utterance:
    """A spoken digit: mono waveform at 16 kHz, without silence at its ends, at most 1.25 s."""

    voice: str
    accent: str
    digit: int
    waveform: Wave


def check_source(source: Source) -> Source:
    """Return the source of speech if it can be used.

    Raises:
        ConfigError: espeak is chosen but not installed.
    """
    if source == "espeak" and find_spec("espeakng_loader") is None:
        raise ConfigError(
            "speech is 'espeak' and the package espeakng_loader is not installed: "
            "install furnace-hpc[espeak], or choose the bank"
        )
    return source


def load_speech(source: Source, seed: np.random.SeedSequence) -> list[Utterance]:
    """Return each digit by each voice and accent. The seed decides espeak's rate and pitch."""
    if source == "bank":
        return read_bank()
    return synthesise(draw_requests(seed))


def draw_requests(seed: np.random.SeedSequence) -> list[SpeechRequest]:
    """Draw a rate of 120 to 200 words per minute and a pitch of 20 to 80 for each utterance."""
    rng = np.random.default_rng(seed)
    return [
        SpeechRequest(voice, accent, digit, int(rng.integers(120, 201)), int(rng.integers(20, 81)))
        for voice in VOICES
        for accent in ACCENTS
        for digit in range(10)
    ]


def synthesise(requests: Sequence[SpeechRequest]) -> list[Utterance]:
    """Speak the requests with espeak-ng in a new process.

    espeak's filters depend on earlier speech, so a new process gives the same waveforms each time.
    It also protects the caller from a crash of the C library.

    Raises:
        ConfigError: espeak has no such voice, or crashed.
    """
    command = [sys.executable, "-P", "-m", "furnace_hpc.data.sets.tridigits.speech", "--speak"]
    rows = [astuple(request) for request in requests]
    child = subprocess.run(command, input=pickle.dumps(rows), capture_output=True, check=False)
    if child.returncode != 0:
        crash = f"espeak crashed (exit {child.returncode}): use the speech bank"
        raise ConfigError(
            (child.stderr.decode(errors="replace").strip().splitlines() or [crash])[-1]
        )
    waves: list[Wave] = pickle.loads(child.stdout)
    return [
        Utterance(r.voice, r.accent, r.digit, wave) for r, wave in zip(requests, waves, strict=True)
    ]


def espeak_version() -> str:
    """Return the version of the espeak-ng library."""
    engine = _Espeak()
    return engine.version


def _speak_all() -> None:
    """Read requests from stdin and write waveforms to stdout, in the new process."""
    requests = [SpeechRequest(*row) for row in pickle.load(sys.stdin.buffer)]
    try:
        engine = _Espeak()
        waves = [_speak_within_window(engine, request) for request in requests]
    except ConfigError as error:
        sys.exit(str(error))
    pickle.dump(waves, sys.stdout.buffer)


def _speak_within_window(engine: "_Espeak", request: SpeechRequest) -> Wave:
    """Speak a digit. A slow voice speaks faster until it fits into the window."""
    rate = request.rate
    while True:
        wave = engine.speak(
            request.voice, request.accent, DIGITS[request.digit], rate, request.pitch
        )
        wave = _trim(soxr.resample(wave, engine.sample_rate, SAMPLE_RATE))
        if len(wave) <= WINDOW_SAMPLES:
            return wave
        rate += 20


def _trim(wave: Wave) -> Wave:
    """Cut both ends where they are quieter than 1 % of the peak."""
    loud = np.flatnonzero(np.abs(wave) > 0.01 * np.abs(wave).max())
    return wave[loud[0] : loud[-1] + 1]


class _Espeak:
    """The espeak-ng library through ctypes (speak_lib.h). Its state is global in a process."""

    def __init__(self) -> None:
        import espeakng_loader

        data = Path(espeakng_loader.get_data_path())
        self.library = ctypes.CDLL(espeakng_loader.get_library_path())
        self.variants = {path.name for path in (data / "voices" / "!v").iterdir()}
        self.chunks: list[NDArray[np.int16]] = []
        synchronous = 2  # AUDIO_OUTPUT_SYNCHRONOUS: the callback gets the samples
        self.sample_rate = int(
            self.library.espeak_Initialize(synchronous, 0, str(data).encode(), 0)
        )
        # Otherwise the clock seeds the noise of breathing voices.
        self.library.espeak_ng_SetRandSeed(ctypes.c_long(1))
        self.library.espeak_Info.restype = ctypes.c_char_p
        self.version: str = self.library.espeak_Info(None).decode()
        # C keeps no reference to the callback, so this object must.
        self.callback = _callback_type()(self._receive)
        self.library.espeak_SetSynthCallback(self.callback)

    def _receive(self, samples: Any, count: int, _events: int) -> int:
        if samples and count > 0:
            self.chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def speak(self, voice: str, accent: str, text: str, rate: int, pitch: int) -> Wave:
        """Return the waveform at `sample_rate` Hz, full scale 1.

        Raises:
            ConfigError: there is no such accent or voice.
        """
        variant = voice.replace("_", " ")
        # espeak reports success for an unknown variant, and ignores it
        if variant not in self.variants:
            raise ConfigError(
                f"espeak voice {voice!r} does not exist: {nearest(variant, self.variants)}"
            )
        if self.library.espeak_SetVoiceByName(f"{accent}+{variant}".encode()) != 0:
            raise ConfigError(
                f"espeak accent {accent!r} does not exist: use one of {', '.join(ACCENTS)}"
            )
        self.library.espeak_SetParameter(1, rate, 0)  # espeakRATE
        self.library.espeak_SetParameter(3, pitch, 0)  # espeakPITCH
        self.chunks.clear()
        encoded = text.encode()
        by_character, utf_8 = 1, 1
        code = self.library.espeak_Synth(
            encoded, len(encoded) + 1, 0, by_character, 0, utf_8, None, None
        )
        if code != 0 or not self.chunks:
            raise ConfigError(
                f"espeak voice {accent}+{variant} cannot speak {text!r} (code {code}): use the bank"
            )
        return np.concatenate(self.chunks).astype(np.float32) / np.float32(32768)


def _callback_type() -> Callable[..., Any]:
    """Return the C type `int(short *samples, int count, espeak_EVENT *events)`."""
    return ctypes.CFUNCTYPE(
        ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
    )


def write_bank(path: Path = BANK) -> None:
    """Speak every digit by every voice, and write the bank and its index (.json)."""
    requests = draw_requests(np.random.SeedSequence(BANK_SEED))
    waves = [soxr.resample(u.waveform, SAMPLE_RATE, BANK_SAMPLE_RATE) for u in synthesise(requests)]
    joined = np.concatenate([0.9 * wave / np.abs(wave).max() for wave in waves])
    with soundfile.SoundFile(
        path, "w", BANK_SAMPLE_RATE, 1, format="OGG", subtype="VORBIS", compression_level=1.0
    ) as file:
        # libsndfile 1.2 crashes on minutes in one write
        for start in range(0, len(joined), 16_000):
            file.write(joined[start : start + 16_000])
    index = {
        "made_by": f"espeak-ng {espeak_version()}",
        "order": "voice, accent, digit",
        "voices": VOICES,
        "accents": ACCENTS,
        "num_samples": [len(wave) for wave in waves],
    }
    path.with_suffix(".json").write_text(
        json.dumps(index, separators=(",", ":")) + "\n", encoding="utf-8"
    )


def read_bank(path: Path = BANK) -> list[Utterance]:
    """Return the utterances of the shipped bank, in the order of `draw_requests`."""
    index = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    joined, _ = soundfile.read(path, dtype="float32")
    ends = np.cumsum(index["num_samples"])
    keys = [(v, a, d) for v in index["voices"] for a in index["accents"] for d in range(10)]
    utterances = []
    for (voice, accent, digit), wave in zip(
        keys, np.split(joined[: ends[-1]], ends[:-1]), strict=True
    ):
        resampled = soxr.resample(wave, BANK_SAMPLE_RATE, SAMPLE_RATE)[:WINDOW_SAMPLES]
        utterances.append(Utterance(voice, accent, digit, resampled))
    return utterances


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write-bank", action="store_true", help="make the shipped bank again")
    action.add_argument(
        "--speak", action="store_true", help="speak pickled requests from stdin (internal)"
    )
    if parser.parse_args().speak:
        _speak_all()
    else:
        write_bank()
