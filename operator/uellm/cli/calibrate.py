"""`uellm calibrate`: fits the step-time model of an engine to measured steps, and reports how well it fits."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from uellm.cli.files import read_json
from uellm.errors import BadInput
from uellm.planner.calibration.calibrate import Calibration, FitReport, calibrate


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("measurements", metavar="MEASUREMENTS.json", help="file of an engine's measured steps")
    parser.add_argument("-o", "--output", required=True, metavar="ENGINE.json", help="engine file to write")
    parser.add_argument(
        "--format", choices=("table", "json"), default="table", help="format of the report (default: table)"
    )


def run(args: argparse.Namespace) -> int:
    """Fit, write the engine file, and print predicted against measured times."""
    found = calibrate(read_json(args.measurements), args.measurements)
    try:
        Path(args.output).write_text(json.dumps(found.to_dict(), indent=2) + "\n")
    except OSError as error:
        raise BadInput(args.output, f"cannot be written: {error.strerror}") from error
    print(json.dumps(report_document(found)) if args.format == "json" else report_table(found))
    return 0


def report_document(found: Calibration) -> dict[str, object]:
    """The table's content as a document."""
    stages = {} if found.stages is None else {"stages": found.stages.to_dict()}
    return {**found.to_dict(), "report": {"steps": found.steps.to_dict(), **stages}}


def report_table(found: Calibration) -> str:
    """The figures, then a line for each kind of measurement."""
    figures = {**found.engine.step.to_dict(), "chunk for free": found.engine.step.floor_tokens}
    lines = [f"{found.engine.name}: {found.engine.kv_tokens} KV tokens, {found.engine.max_num_seqs} sequences"]
    lines += [f"  {name:<16} {value:.4g}{'' if name.startswith('chunk') else ' s'}" for name, value in figures.items()]
    if found.efficiency is not None:
        lines.append(f"  {found.efficiency.sentence}")
    lines += ["", f"{'':8}{'measured':>9}{'median error':>14}{'p90 error':>11}{'held out':>10}{'R^2':>8}{'rank':>7}"]
    lines.append(_line("steps", found.steps))
    if found.stages is not None:
        lines.append(_line("stages", found.stages))
    return "\n".join(lines)


def _line(name: str, report: FitReport) -> str:
    return (
        f"{name:<8}{report.measurements:>9}{report.median_error:>14.1%}{report.p90_error:>11.1%}"
        f"{report.held_out_median_error:>10.1%}{report.r_squared:>8.3f}{report.rank_correlation:>7.3f}"
    )
