"""`tandem models`: what the registry holds, and which policy each slot serves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent.commands.options import AsJson, ConfigFile, Overrides

if TYPE_CHECKING:
    from agent.settings import StrategySettings
    from strategies.bundle import Bundle, Registry, Slot

app = typer.Typer(name="models", help="The model registry: list, show, promote, rollback.", no_args_is_help=True)

SlotName = Annotated[str | None, typer.Option("--slot", help="Slot.", show_default="strategy.slot")]


@app.command("list")
def list_(config: ConfigFile = None, overrides: Overrides = None, as_json: AsJson = False) -> None:  # noqa: FBT002 - a flag on the command line is a named boolean
    """List the slots and the policies, oldest first; a policy that does not verify is listed with the reason."""
    from agent.commands.screen import Screen, print_json  # noqa: PLC0415 - paid by the command alone
    from strategies.bundle import BundleError  # noqa: PLC0415 - as above

    registry, _ = _registry(config, overrides)
    slots = [_slot_content(registry.slot(name)) for name in registry.slots()]
    serving: dict[str, list[str]] = {}
    for slot in slots:
        serving.setdefault(slot["policy"], []).append(slot["slot"])
    policies: list[dict[str, Any]] = []
    for policy_id in registry.policies():
        entry: dict[str, Any] = {"policy": policy_id, "slots": serving.get(policy_id, [])}
        try:
            entry |= _summary(registry.show(policy_id))
        except BundleError as error:
            entry |= {"refused": str(error)}
        policies.append(entry)
    if as_json:
        print_json({"root": str(registry.root), "slots": slots, "policies": policies})
        return
    screen = Screen()
    screen.say(f"registry {registry.root}: {len(policies)} policies, {len(slots)} slots")
    if slots:
        screen.title("Slots")
        names = ("slot", "policy", "at", "reason", "changes")
        rows = [(*(slot[name] for name in names), _voice(slot)) for slot in slots]
        screen.table(("slot", "policy", "since", "reason", "changes before", "language model"), rows)
    if policies:
        screen.title("Policies")
        cells = [
            (
                one["policy"],
                ", ".join(one["slots"]) or "-",
                one.get("feed", "REFUSED"),
                one.get("targets", ""),
                one.get("features", ""),
                one.get("refused") or one.get("code_version"),
            )
            for one in policies
        ]
        screen.table(("policy", "slots", "feed", "targets", "features", "made by"), cells)


@app.command("show")
def show(
    policy: Annotated[str, typer.Argument(help="Policy id, slot, or a bundle's directory.", show_default=False)],
    config: ConfigFile = None,
    overrides: Overrides = None,
    as_json: AsJson = False,  # noqa: FBT002 - a flag on the command line is a named boolean
) -> None:
    """Verify a policy and show what it was made of and what was measured."""
    from agent.commands.screen import Screen, print_json  # noqa: PLC0415 - paid by the command alone

    registry, _ = _registry(config, overrides)
    bundle = _find(registry, policy)
    slots = [_slot_content(registry.slot(name)) for name in registry.slots()]
    serving = [slot["slot"] for slot in slots if slot["policy"] == bundle.id]
    voices = {slot["slot"]: slot for slot in slots if slot["policy"] == bundle.id and slot["llm"] is not None}
    manifest = {key: value for key, value in bundle.manifest.items() if key != "canary"}
    if as_json:
        shown = ("llm", "llm_fits", "fusion", "llm_weight")
        minds = {name: {key: slot[key] for key in shown} for name, slot in voices.items()}
        print_json({"path": str(bundle.path), "slots": serving, "language_models": minds, **manifest})
        return
    screen = Screen()
    screen.pairs(
        [
            ("policy", f"{bundle.id} (every hash verified)"),
            ("path", str(bundle.path)),
            ("slots", ", ".join(serving) or "none"),
            ("targets", ", ".join(map(str, bundle.targets))),
            ("features", f"{len(bundle.feature_spec.names)} (spec {bundle.feature_spec.hash[:12]})"),
            ("made by", str(manifest["code_version"])),
            ("seeds", ", ".join(map(str, manifest["seeds"]))),
        ]
    )
    for name, slot in voices.items():
        screen.title(f"Language model of slot {name}")
        fusion = {f"fusion.{key}": value for key, value in (slot["fusion"] or {}).items()}
        screen.pairs(
            _flat({**slot["llm"], "weight": slot["llm_weight"], "tuned on this policy": slot["llm_fits"], **fusion})
        )
    for title in ("data", "metrics", "training"):
        screen.title(title.capitalize())
        screen.pairs(_flat(manifest[title]))


@app.command("promote")
def promote(
    policy: Annotated[str, typer.Argument(help="Policy id, or a bundle's directory to add first.", show_default=False)],
    slot: SlotName = None,
    reason: Annotated[str, typer.Option(help="Why; kept in the slot's history.")] = "by hand",
    llm: Annotated[
        Path | None,
        typer.Option(
            help="File (JSON or YAML) with the language model's model, digest, temperature, tuned_on, prompt_version "
            "and template_hash; the options below win over it.",
            show_default="the slot's",
        ),
    ] = None,
    llm_model: Annotated[str | None, typer.Option(help="Language model's name on the server.", show_default="")] = None,
    llm_digest: Annotated[
        str | None, typer.Option(help="Its digest, at least the first 12 digits.", show_default="")
    ] = None,
    llm_temperature: Annotated[
        float | None, typer.Option(min=0.05, max=20, help="Its calibration.", show_default="")
    ] = None,
    llm_tuned_on: Annotated[
        str | None, typer.Option(help="Id of the policy on whose decisions it was tuned.", show_default="")
    ] = None,
    fusion_weight: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=100,
            help="Weight of the language model in the pool.",
            show_default="the slot's for the same policy and language model, else 0",
        ),
    ] = None,
    fusion_temperature: Annotated[
        float | None,
        typer.Option(
            help="Temperature of the softmax over the policy's values, log equity.",
            show_default="the slot's for the same policy",
        ),
    ] = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    as_json: AsJson = False,  # noqa: FBT002 - a flag on the command line is a named boolean
) -> None:
    """Let a slot serve a policy from the next start of a daemon on, after verifying it and its canary answer here.

    The slot keeps its language model, and its weight where the policy and the model stay the same.
    """
    from datetime import UTC, datetime  # noqa: PLC0415 - paid by the command alone

    from agent.promotion import promoted_fusion, promoted_llm  # noqa: PLC0415 - as above
    from brokers.configuration import load_yaml  # noqa: PLC0415 - as above
    from strategies.policy import BundlePolicy  # noqa: PLC0415 - ONNX Runtime

    given: dict[str, Any] = {} if llm is None else load_yaml(llm)
    said = {"model": llm_model, "digest": llm_digest, "temperature": llm_temperature, "tuned_on": llm_tuned_on}
    given |= {key: value for key, value in said.items() if value is not None}
    registry, chosen = _registry(config, overrides)
    name = slot or chosen.slot
    bundle = _find(registry, policy)
    BundlePolicy(bundle)  # answers its canary, or raises: what cannot be served is not promoted
    before = registry.slot(name) if name in registry.slots() else None
    voice = promoted_llm(bundle, before, given, shorts=chosen.shorts)
    fusion = promoted_fusion(bundle, before, voice, weight=fusion_weight, temperature=fusion_temperature)
    if bundle.id not in registry.policies():
        bundle = registry.add(bundle)
    promoted = registry.promote(name, bundle.id, at=datetime.now(UTC), reason=reason, llm=voice, fusion=fusion)
    _tell(promoted, as_json=as_json)


@app.command("rollback")
def rollback(
    slot: SlotName = None,
    reason: Annotated[str, typer.Option(help="Why; kept in the slot's history.")] = "rollback",
    config: ConfigFile = None,
    overrides: Overrides = None,
    as_json: AsJson = False,  # noqa: FBT002 - a flag on the command line is a named boolean
) -> None:
    """Let a slot serve again what it served before its last change."""
    from datetime import UTC, datetime  # noqa: PLC0415 - paid by the command alone

    registry, chosen = _registry(config, overrides)
    _tell(registry.rollback(slot or chosen.slot, at=datetime.now(UTC), reason=reason), as_json=as_json)


def _registry(config: Path | None, overrides: list[str] | None) -> tuple[Registry, StrategySettings]:
    from agent.settings import load  # noqa: PLC0415 - paid by these commands alone
    from strategies.bundle import Registry  # noqa: PLC0415 - as above

    chosen = load(config, overrides or []).strategy
    return Registry(chosen.models), chosen


def _find(registry: Registry, policy: str) -> Bundle:
    """Return a verified bundle by id, by the slot that serves it, or by its directory."""
    from strategies.bundle import MANIFEST_FILE, Bundle  # noqa: PLC0415 - paid by these commands alone

    if policy in registry.slots():
        return registry.show(registry.slot(policy).policy)
    if (Path(policy) / MANIFEST_FILE).is_file():
        return Bundle.load(policy)
    return registry.show(policy)


def _summary(bundle: Bundle) -> dict[str, Any]:
    return {
        "feed": bundle.data_feed,
        "targets": list(bundle.targets),
        "features": len(bundle.feature_spec.names),
        "code_version": bundle.manifest["code_version"],
        "metrics": bundle.manifest["metrics"],
    }


def _slot_content(slot: Slot) -> dict[str, Any]:
    return {
        "slot": slot.name,
        "policy": slot.policy,
        "at": slot.at,
        "reason": slot.reason,
        "changes": len(slot.history),
        "previous": slot.history[-1]["policy"] if slot.history else None,
        "llm": None if slot.llm is None else dict(slot.llm),
        "llm_fits": slot.llm_fits,
        "fusion": None if slot.fusion is None else dict(slot.fusion),
        "llm_weight": slot.llm_weight,
    }


def _voice(content: Mapping[str, Any]) -> str:
    """Say on one line which language model a slot names, and what it counts for."""
    llm = content["llm"]
    if llm is None:
        return "none"
    told = f"{llm['model']} {str(llm['digest'])[:12]}, weight {content['llm_weight']:g}"
    if not content["llm_fits"]:
        tuned_on = llm.get("tuned_on")
        told += ", tuned on " + ("no policy that is named" if tuned_on is None else f"another policy ({tuned_on})")
    return told


def _tell(slot: Slot, *, as_json: bool) -> None:
    from agent.commands.screen import print_json  # noqa: PLC0415 - paid by these commands alone

    content = _slot_content(slot)
    if as_json:
        print_json(content)
        return
    before = f", before it {content['previous']}" if content["previous"] else ""
    typer.echo(f"slot {slot.name} serves {slot.policy} ({slot.reason}){before}; a daemon takes it at its next start")
    if content["llm"] is not None:
        typer.echo(f"language model: {_voice(content)}")


def _flat(content: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in content.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", str(value)))
    return rows
