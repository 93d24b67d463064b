"""`tidemill plan`: what a training run will need, before it is started; `tidemill doctor --collectives` measures for it."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tidemill.cli import options as given
from tidemill.core.errors import ConfigError

if TYPE_CHECKING:
    from tidemill.train.planner.memory import Precision
    from tidemill.train.planner.network import Network
    from tidemill.train.planner.plan import Plan

# Reasons shown to people; --json has them all.
MOST_REASONS = 6
# Rows of a step where nobody says.
BATCH = 64


def plan(options: argparse.Namespace) -> int:
    from tidemill.train.planner import collectives, devices
    from tidemill.train.planner.plan import plan
    from tidemill.train.planner.timing import Running

    network, batch, precision, is_compiled = _asked(options)
    made = plan(
        network,
        devices.device(options.device),
        ranks=options.count,
        batch=batch,
        precision=_precision(options, precision),
        running=Running(fused=is_compiled),
        measured=collectives.read(Path(options.collectives)) if options.collectives else None,
    )
    return given.say(options, made.to_json(), lambda: _show(made, options.top))


def collectives(options: argparse.Namespace) -> int:
    import json

    from tidemill.train.planner.measuring import gpus, survey

    found = survey(options.ranks if options.ranks is not None else max(gpus(), 2), events=given.events(options))
    if options.output:
        out = Path(options.output)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(found.to_json(), indent=1) + "\n", encoding="utf-8")

    def show() -> None:
        from tidemill.ui.console import table
        from tidemill.ui.plan import collective_columns, collectives_heading

        print(f"{collectives_heading(found)}\n")
        table(*collective_columns(found))
        if options.output:
            print(f"\n{options.output}: tidemill plan --collectives {options.output}")

    return given.say(options, found.to_json(), show)


def _show(made: Plan, most: int) -> None:
    from tidemill.ui.console import table
    from tidemill.ui.plan import advice, columns, heading, reasons, traffic

    print(f"{heading(made)}\n")
    if made.choices:
        table(*columns(made, most=most))
        if len(made.choices) > most:
            print(f"... {len(made.choices) - most} slower ones; --top shows more")
        print(f"\nbest: {advice(made)}\n{traffic(made.choices[0])}")
    else:
        print(advice(made))
    if made.refused:
        print("\nfall out:")
        for line in reasons(made.refused, most=MOST_REASONS):
            print(f"  {line}")
    if made.device.name == "cpu" and not made.measured:
        print(
            "\nbeware: communication between processes is a guess; tidemill doctor --collectives --output FILE measures it for --collectives"
        )


def _asked(options: argparse.Namespace) -> tuple[Network, int, str, bool]:
    """Network, rows of a step, precision and whether it is compiled: of the options, else of the project."""
    if not options.file:
        return _network(options), options.batch or BATCH, options.precision or "bf16", options.compile
    from tidemill.train.planner.project import asked

    said = next(
        (name for name in ("parameters", "hidden", "layers", "heads", "kv_heads", "ffn") if getattr(options, name) is not None), None
    )
    if said is not None:
        raise ConfigError(f"--{said.replace('_', '-')}: must stand without -f, whose project says the network")
    found = asked(given.project(options), inputs=options.inputs, vocabulary=options.vocabulary, sequence=options.sequence)
    return found.network, options.batch or found.batch, options.precision or found.precision, options.compile or found.is_compiled


def _network(options: argparse.Namespace) -> Network:
    from tidemill.train.planner.network import Transformer, sized

    shape = {name: getattr(options, name) for name in ("hidden", "layers", "heads", "kv_heads", "ffn")}
    said = {name: value for name, value in shape.items() if value is not None}
    if options.parameters is not None:
        if said:
            raise ConfigError(f"--parameters: must stand without --{next(iter(said)).replace('_', '-')}, got both")
        return sized(options.parameters, sequence=options.sequence, vocabulary=options.vocabulary, **_style(options))
    missing = [name for name in ("hidden", "layers", "heads") if name not in said]
    if missing:
        raise ConfigError(
            f"--{missing[0]}: must be given, or --parameters", hint="tidemill plan --parameters 7e9 --device h100 --count 64 --batch 512"
        )
    return Transformer(vocabulary=options.vocabulary, sequence=options.sequence, **said, **_style(options))


def _style(options: argparse.Namespace) -> dict[str, Any]:
    return {"gated": True, "biases": False, "learned_positions": False, "tied": False} if options.gated else {}


def _precision(options: argparse.Namespace, name: str) -> Precision:
    from tidemill.train.planner.memory import PRECISIONS

    known = PRECISIONS[name]
    if options.bytes is None:
        return known
    try:
        parameter, gradient, optimizer = (float(part) for part in options.bytes.split(","))
    except ValueError:
        raise ConfigError(f"--bytes: must be three numbers such as 2,2,12, got {options.bytes!r}") from None
    if min(parameter, gradient, optimizer) < 0:
        raise ConfigError(f"--bytes: must be at least 0, got {options.bytes}")
    return replace(known, parameter=parameter, gradient=gradient, optimizer=optimizer, reduce=gradient)
