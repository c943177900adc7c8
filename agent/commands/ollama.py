"""`tandem ollama`: a stand-in for an Ollama server, for trying the language-model side without a model."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from agent.ollama.standin import Standin
    from agent.ollama.tokens import Split

Text = str | None


def ollama(
    port: Annotated[int, typer.Option(help="TCP port; 0 lets the system choose.")] = 11434,
    host: Annotated[str, typer.Option(help="Interface to listen on.")] = "127.0.0.1",
    model: Annotated[
        list[str] | None, typer.Option(help="Name of a model there is; repeatable.", show_default="tandem")
    ] = None,
    digest: Annotated[Text, typer.Option(help="The models' digest, 64 hex digits.", show_default="of the name")] = None,
    answers: Annotated[
        str,
        typer.Option(help="rule (the prompt's signed numbers decide), hash (of the prompt), or a file of answers."),
    ] = "rule",
    fault: Annotated[
        list[str] | None,
        typer.Option(help="NAME[=VALUE][*TIMES][@PROBABILITY][:PATH]; repeatable.", show_default="none"),
    ] = None,
    delay_s: Annotated[tuple[float, float], typer.Option(help="Seconds before an answer: drawn between these two.")] = (
        0.0,
        0.0,
    ),
    load_s: Annotated[float, typer.Option(help="Seconds that loading a model takes.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of delays, of faults with a probability, and of hash.")] = 1,
    parallel: Annotated[int, typer.Option(help="Requests answered at the same time.")] = 1,
    max_queued: Annotated[int, typer.Option(help="Requests that may wait beyond them; more get 503.")] = 512,
    split: Annotated[
        str, typer.Option(help="The chosen word's tokens: word, pieces (first letter and rest), or mixed.")
    ] = "word",
    as_json: Annotated[bool, typer.Option("--json", help="Print the ready line as JSON.")] = False,  # noqa: FBT002  a flag on the command line is a named boolean
) -> None:
    """Stand in for an Ollama server: its native API, answers by rule or script, and faults on demand."""
    from agent.ollama.server import serve  # noqa: PLC0415  heavy: paid by this command alone

    standin = _standin(
        model or ["tandem"],
        digest=digest,
        answers=answers,
        faults=fault or [],
        delay_s=delay_s,
        load_s=load_s,
        seed=seed,
        parallel=parallel,
        max_queued=max_queued,
        split=split,
    )

    def ready(url: str) -> None:
        facts = {
            "url": url,
            "models": [{"name": entry["name"], "digest": entry["digest"]} for entry in standin.listed()],
            "faults": [each.json() for each in standin.plan.faults],
        }
        typer.echo(json.dumps(facts) if as_json else f"stand-in ready at {url} with {', '.join(standin.models)}")

    serve(standin, host=host, port=port, on_ready=ready)


def _standin(
    models: list[str],
    *,
    digest: Text,
    answers: str,
    faults: list[str],
    delay_s: tuple[float, float],
    load_s: float,
    seed: int,
    parallel: int,
    max_queued: int,
    split: str,
) -> Standin:
    from agent.commands.errors import CommandError  # noqa: PLC0415  paid by this command alone
    from agent.ollama.answers import AnswersError, load_answers  # noqa: PLC0415  as above
    from agent.ollama.standin import Standin  # noqa: PLC0415  as above
    from agent.settings import ConfigurationError  # noqa: PLC0415  as above

    known: dict[str, Split] = {"word": "word", "pieces": "pieces", "mixed": "mixed"}
    if split not in known:
        raise ConfigurationError(f"--split {split!r}: give word, pieces or mixed")
    try:
        return Standin(
            load_answers(answers),
            models=models,
            digest=digest,
            faults=faults,
            delay_s=delay_s,
            seed=seed,
            load_s=load_s,
            parallel=parallel,
            queued_max=max_queued,
            split=known[split],
        )
    except AnswersError as error:
        raise CommandError(str(error)) from error
    except ValueError as error:
        raise ConfigurationError(str(error)) from error
