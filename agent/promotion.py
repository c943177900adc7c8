"""What a promotion puts beside the policy: the language model, pinned, and the weight that it has earned.

A weight belongs to one pair of minds. Where either changes, it begins at zero again unless it is said anew, and it
can only be said for a language model that was tuned on the very policy that is promoted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from strategies.answers import short_digest

if TYPE_CHECKING:
    from strategies.bundle import Bundle, Slot

SLOT_LLM = ("model", "digest", "prompt_version", "template_hash", "temperature", "tuned_on")
"""What a slot's `llm` entry may hold."""

_POLICY_ID = re.compile(r"[0-9a-f]{16}")


class PromotionError(Exception):
    """A language model or weight that must not be promoted; the message says what to do."""


def promoted_llm(
    bundle: Bundle, before: Slot | None, given: Mapping[str, Any], *, shorts: bool = False
) -> dict[str, Any] | None:
    """Return a slot's `llm` entry after a promotion.

    A model that is named is pinned to this program's prompts of the policy's features. What the slot names already
    is kept as it was pinned, and abstains where the new policy makes other prompts.

    Args:
        bundle: The policy that is promoted.
        before: The slot as it was; None for a new one.
        given: What was said, of `SLOT_LLM`; nothing keeps what the slot names.
        shorts: As the daemon will be told: prompts with and without short positions differ.

    Raises:
        PromotionError: No model is named, a value is none, or it was tuned on prompts that this program does not make.
    """
    from strategies.llm.config import LanguageModelConfig, LanguageModelError  # noqa: PLC0415 - where one is named
    from strategies.prompt import PROMPT_VERSION, PromptError, Template  # noqa: PLC0415 - as above

    if unknown := sorted(given.keys() - set(SLOT_LLM)):
        raise PromotionError(f"{unknown[0]!r} says nothing of a language model: it may hold {', '.join(SLOT_LLM)}")
    kept: dict[str, Any] = {} if before is None or before.llm is None else dict(before.llm)
    if not given:
        return kept or None
    if not same_model(kept, given):
        kept = {key: kept[key] for key in ("model",) if key in kept}  # a new digest is often that of the old name
    entry = kept | dict(given)
    if not entry.get("model") or not entry.get("digest"):
        lacking = "model" if not entry.get("model") else "digest"
        raise PromotionError(
            f"the language model has no {lacking}: give --llm-model and --llm-digest, as `ollama list` shows them"
        )
    for key in ("model", "digest", "prompt_version", "template_hash", "tuned_on"):
        if not isinstance(entry.get(key, ""), str):
            raise PromotionError(
                f"{key} of the language model is {entry[key]!r}, which YAML reads as no text: write it in quotes"
            )
    tuned_on = entry.get("tuned_on")
    if tuned_on is not None and not _POLICY_ID.fullmatch(tuned_on):
        raise PromotionError(
            f"tuned_on is {tuned_on!r}: give the id of the policy whose decisions it was tuned on, as `tandem models "
            "list` shows it"
        )
    try:
        temperature = float(entry.get("temperature", 1.0))
        config = LanguageModelConfig(model=entry["model"], digest=entry["digest"], temperature=temperature)
        ours = {"prompt_version": PROMPT_VERSION, "template_hash": Template(bundle.feature_spec, shorts=shorts).hash}
    except (LanguageModelError, PromptError, TypeError, ValueError) as error:
        raise PromotionError(f"this language model cannot be promoted: {error}") from error
    for key, value in ours.items():
        if key in given and given[key] != value:
            raise PromotionError(
                f"{key} of the language model is {given[key]!r}, policy {bundle.id} makes {value!r} here: tune it on "
                "this policy's prompts" + (" (strategy.shorts is true)" if shorts else "")
            )
        if key not in kept:
            entry[key] = value
    return entry | {"digest": config.digest.removeprefix("sha256:").lower(), "temperature": temperature}


def promoted_fusion(
    bundle: Bundle,
    before: Slot | None,
    llm: Mapping[str, Any] | None,
    *,
    weight: float | None = None,
    temperature: float | None = None,
) -> dict[str, float] | None:
    """Return a slot's `fusion` entry after a promotion.

    Args:
        bundle: The policy that is promoted.
        before: The slot as it was; None for a new one.
        llm: What `promoted_llm` said.
        weight: Of the language model; None keeps the slot's for the same two minds, else it is zero.
        temperature: Of the softmax over the policy's values; None keeps the slot's for the same policy.

    Raises:
        PromotionError: A weight that was not earned, or a number that is none.
    """
    from strategies.fusion import FusionError, FusionWeights  # noqa: PLC0415 - NumPy, where a slot is filled

    same_policy = before is not None and before.policy == bundle.id
    old: dict[str, Any] = dict(before.fusion or {}) if before is not None and same_policy else {}
    if before is None or not _same_voice(before.llm, llm):
        old.pop("llm_weight", None)
    new = old | {
        key: value for key, value in (("llm_weight", weight), ("temperature", temperature)) if value is not None
    }
    try:
        weights = FusionWeights.of_slot(new)
    except FusionError as error:
        raise PromotionError(str(error)) from error
    if weight is not None and weights.llm_weight > 0.0:
        _check_earned(bundle, llm)
    return new or None


def _check_earned(bundle: Bundle, llm: Mapping[str, Any] | None) -> None:
    if llm is None:
        raise PromotionError(
            "a fusion weight above zero needs a language model: name it with --llm-model, --llm-digest"
        )
    tuned_on = llm.get("tuned_on")
    if tuned_on != bundle.id:
        what = "on no policy that is named" if tuned_on is None else f"on policy {tuned_on}"
        raise PromotionError(
            f"{llm['model']} was tuned {what}, {bundle.id} is promoted: its weight stays zero until it was tuned and "
            f"tested on {bundle.id} (--llm-tuned-on {bundle.id}); leave --fusion-weight out"
        )


def same_model(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Tell whether what `other` says names the model of `one`: it names none, or the same digest."""
    digest = other.get("digest")
    if digest is None:
        return other.get("model") in (None, one.get("model"))
    known = str(one.get("digest", ""))
    return bool(known) and short_digest(str(digest)) == short_digest(known)


def _same_voice(one: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> bool:
    """Tell whether two entries answer the same: the weight was earned with the calibration of its time."""
    if one is None or other is None:
        return False
    calibrations = (float(entry.get("temperature", 1.0)) for entry in (one, other))
    return same_model(one, {"digest": other.get("digest")}) and math.isclose(*calibrations)
