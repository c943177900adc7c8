"""Who decides: the strategy that the settings name, with the bundle, model and weights of its slot.

`dqn` is the policy alone, `llm` the language model alone, `fused` both; every baseline goes by its own name. Live,
the language model is asked; in a replay it reads what was recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.promotion import SLOT_LLM, same_model
from agent.settings import LlmSettings, Settings
from strategies.strategy import Strategy

if TYPE_CHECKING:
    from agent.ledger.answers import PendingAnswers
    from strategies.answers import AnswerBook
    from strategies.bundle import Bundle, Slot
    from strategies.fusion import FusionWeights
    from strategies.llm import LanguageModel
    from strategies.llm.config import LanguageModelConfig
    from strategies.policy import BundlePolicy


class StartError(Exception):
    """The daemon or replay cannot be built; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Minds:
    """Who decides.

    Args:
        strategy: Asked at each close.
        pinned: Pins it: the bundle's id, the language model's digest, or the parameters.
        answers: The language model's answers on their way to the ledger; None where none is asked.
        model: The language model itself, to be warmed up and closed; None where there is none.
    """

    strategy: Strategy
    pinned: str
    answers: PendingAnswers | None = None
    model: LanguageModel | None = None

    async def warm_up(self) -> None:
        """Let the language model be loaded; without one there is nothing to wait for."""
        if self.model is not None:
            await self.model.warm_up()

    async def aclose(self) -> None:
        """Let connections go."""
        if self.model is not None:
            await self.model.aclose()

    @property
    def counters(self) -> Callable[[], Mapping[str, int]] | None:
        """Reads the language model's counters; None where none is asked."""
        model = self.model
        return None if model is None else lambda: model.counters

    @property
    def status(self) -> Callable[[], Mapping[str, Any]] | None:
        """Reads the language model's state for people; None where none is asked."""
        model = self.model
        return None if model is None else lambda: asdict(model.status())


def make_minds(settings: Settings, *, replaying: bool = False, explains: bool = True) -> Minds:
    """Return who decides.

    Args:
        settings: `strategy`, `llm`, `fusion`.
        replaying: True where nobody is asked: the language model's answers are read from `llm.recorded`.
        explains: False where nobody will ask why: see `strategies.policy.BundlePolicy`.

    Raises:
        StartError: There is no such strategy, bundle or model, or it does not fit.
    """
    chosen = settings.strategy
    if chosen.name not in {"dqn", "llm", "fused"}:
        return _baseline(settings)
    if chosen.name == "dqn":
        policy, _ = _policy(settings, explains=explains)
        return Minds(policy, policy.bundle.id)
    policy, slot = _policy(settings, explains=explains)
    model, answers = _language_model(settings, policy.bundle, slot, replaying=replaying)
    pinned = f"llm {model.config.digest[:12]}"
    if chosen.name == "llm":
        return Minds(model, pinned, answers, model)
    from strategies.fusion import Fused  # noqa: PLC0415 - only what is configured

    fused = Fused(policy, model, _weights(settings, policy.bundle, slot))
    return Minds(fused, f"{policy.bundle.id} and {pinned}", answers, model)


def _baseline(settings: Settings) -> Minds:
    from strategies.baselines import BaselineError, make_baseline  # noqa: PLC0415 - only what is configured

    chosen = settings.strategy
    params: dict[str, Any] = dict(chosen.params)
    try:
        rule = make_baseline(chosen.name, params | {"shorts": chosen.shorts}, settings.bar_period)
    except BaselineError as error:
        raise StartError(str(error)) from error
    return Minds(rule, f"{chosen.name}:{params}")


def _policy(settings: Settings, *, explains: bool) -> tuple[BundlePolicy, Slot | None]:
    """Return the policy, and its slot unless a bundle was named directly."""
    from strategies.bundle import Bundle, BundleError, Registry  # noqa: PLC0415 - only what is configured
    from strategies.policy import BundlePolicy  # noqa: PLC0415 - only what is configured

    chosen = settings.strategy
    slot = None
    try:
        if chosen.bundle is not None:
            bundle = Bundle.load(chosen.bundle, data_feed=chosen.data_feed)
        else:
            registry = Registry(chosen.models)
            slot = registry.slot(chosen.slot)
            bundle = registry.show(slot.policy, data_feed=chosen.data_feed)
        policy = BundlePolicy(bundle, shorts=chosen.shorts, explains=explains)
    except BundleError as error:
        raise StartError(str(error)) from error
    made_for_s, wanted_s = bundle.feature_spec.period_s, settings.bar_period.total_seconds()
    if made_for_s is not None and made_for_s != wanted_s:
        raise StartError(
            f"policy {bundle.id} decides on bars of {made_for_s:g} s, period is {settings.period} ({wanted_s:g} s): "
            "set period to the policy's, or train one on these bars"
        )
    return policy, slot


def _language_model(
    settings: Settings, bundle: Bundle, slot: Slot | None, *, replaying: bool
) -> tuple[LanguageModel, PendingAnswers | None]:
    from strategies.llm import LanguageModel  # noqa: PLC0415 - the client costs memory; only what is configured
    from strategies.llm.config import LanguageModelError  # noqa: PLC0415 - see above
    from strategies.prompt import PromptError  # noqa: PLC0415 - see above

    try:
        config = _llm_config(settings.llm, slot, shorts=settings.strategy.shorts)
        if replaying:
            return LanguageModel(bundle.feature_spec, config, book=_recorded(settings)), None
        from agent.ledger.answers import PendingAnswers  # noqa: PLC0415 - see above

        pending = PendingAnswers()
        return LanguageModel.on_ollama(bundle.feature_spec, config, pending), pending
    except (LanguageModelError, PromptError) as error:
        raise StartError(str(error)) from error


def _llm_config(llm: LlmSettings, slot: Slot | None, *, shorts: bool) -> LanguageModelConfig:
    from strategies.llm.config import LanguageModelConfig  # noqa: PLC0415 - see above

    named: Mapping[str, Any] = {} if slot is None or slot.llm is None else slot.llm
    if unknown := sorted(named.keys() - set(SLOT_LLM)):
        raise StartError(f"the slot's llm holds {unknown[0]!r}: it knows {', '.join(SLOT_LLM)}")
    if not same_model(named, {"model": llm.model, "digest": llm.digest}):
        named = {"model": named.get("model")}  # prompts and calibration are not those of the settings' model
    given = llm.model_dump(exclude={"model", "digest", "temperature", "recorded"})
    given |= {key: named[key] for key in ("prompt_version", "template_hash", "temperature") if key in named}
    if llm.temperature is not None:
        given["temperature"] = llm.temperature
    model, digest = llm.model or named.get("model"), llm.digest or named.get("digest")
    if model is None or digest is None:
        raise StartError(
            "strategy.mode asks a language model and neither the slot nor the settings name one: set llm.model and "
            "llm.digest, as `ollama list` shows them"
        )
    return LanguageModelConfig(model=str(model), digest=str(digest), shorts=shorts, **given)


def _weights(settings: Settings, bundle: Bundle, slot: Slot | None) -> FusionWeights:
    """Return the slot's weights with what the settings say over them.

    A language model that is not the slot's, or was tuned on another policy's decisions, has not earned its weight.
    """
    from dataclasses import replace  # noqa: PLC0415 - only what is configured

    from strategies.fusion import FusionError, FusionWeights  # noqa: PLC0415 - only what is configured

    try:
        weights = FusionWeights.of_slot(None if slot is None else slot.fusion)
    except FusionError as error:
        raise StartError(f"slot {settings.strategy.slot!r}: {error}") from error
    said, llm = settings.fusion, settings.llm
    earned = slot is not None and slot.llm is not None and slot.llm.get("tuned_on") == bundle.id
    if slot is None or not earned or not same_model(slot.llm or {}, {"model": llm.model, "digest": llm.digest}):
        weights = replace(weights, llm_weight=0.0)
    if said.llm_weight is not None:
        weights = replace(weights, llm_weight=said.llm_weight)
    if said.temperature is not None:
        weights = replace(weights, temperature=said.temperature)
    return weights


def _recorded(settings: Settings) -> AnswerBook:
    """Open what a replay reads: a JSONL file, or a ledger."""
    from agent.ledger.answers import LedgerAnswers  # noqa: PLC0415 - only what is configured
    from agent.ledger.store import LedgerError, open_ledger  # noqa: PLC0415 - only what is configured
    from strategies.answers import AnswerFile, AnswersError  # noqa: PLC0415 - only what is configured

    path = settings.llm.recorded
    if path is not None and not path.is_file():
        raise StartError(f"llm.recorded {path} is not there: name a ledger, or a JSONL file of recorded answers")
    try:
        if path is not None and not _is_sqlite(path):
            return AnswerFile(path)
        url = settings.ledger.url if path is None else f"sqlite:///{path}"
        return LedgerAnswers(open_ledger(url, create=False))
    except (AnswersError, LedgerError) as error:
        raise StartError(
            f"a replay reads the language model's recorded answers, and has none: {error}; set llm.recorded"
        ) from error


def _is_sqlite(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(16) == b"SQLite format 3\x00"
