"""What was measured as tables for a terminal."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qurating_jax.runtime.terminal import NOTHING, add_row, number, table

if TYPE_CHECKING:
    from rich.table import Table

_RATIOS = ("ours / other", "wall, medians", "wall, rounds", "CPU, medians", "CPU, rounds")


def contest(title: str, found: Mapping[str, Any]) -> "list[Table]":
    """The sides of a contest, with the padding of what they did and of the whole sample, and the ratios of speeds."""
    sides = table(
        title, "side", "tokens/s (low to high)", "tokens/CPU-s", "padding", "of all", "TFLOP/s", "MFU",
        "first turn s", "shapes", "compiled", "compile s",
    )  # fmt: skip
    for name, side in found["sides"].items():
        programs = f"{side['programs']} ({side['from_cache']} cached)" if "programs" in side else NOTHING
        add_row(
            sides, name, rate(side["tokens_per_second"]), f"{side['tokens_per_cpu_second']['median']:.0f}",
            percent(side["padding"]), percent(side.get("padding_of_all")), f"{side['flops_per_second'] / 1e12:.3f}",
            percent(side.get("mfu")), f"{side['first_seconds']:.1f}", side.get("shapes", NOTHING), programs,
            f"{side['compiler_seconds']:.1f}" if "compiler_seconds" in side else NOTHING,
        )  # fmt: skip
    compared = table("times as many tokens per second", *_RATIOS)
    for mine, others in found["ratios"].items():
        for other, ratio in others.items():
            add_row(compared, f"{mine} / {other}", *_ratio_cells(ratio))
    return [sides, *([compared] if compared.row_count else [])]


def host(found: Mapping[str, Any]) -> "list[Table]":
    """Laying out, and annotation without a model beside the tokenizer."""
    laid = table("host: batches of 65 536 tokens", "work", "Mtokens/s (low to high)")
    for name, key in (("plan the batches", "plan"), ("lay out the tokens", "lay_out")):
        add_row(laid, name, rate(found["layout"][f"{key}_tokens_per_second"], 1e6))
    if "pipeline" not in found:
        return [laid]
    sides = table(
        "host: reading, tokenizing, cutting, writing", "side", "tokens/s (low to high)", "MB/s", "tokens/CPU-s"
    )
    for name, side in found["pipeline"]["sides"].items():
        add_row(
            sides, name, rate(side["tokens_per_second"]), f"{side['megabytes_per_second']['median']:.2f}",
            f"{side['tokens_per_cpu_second']['median']:.0f}",
        )  # fmt: skip
    return [laid, sides, _one_ratio(found["pipeline"]["ratio"], "all of it / tokenizer alone")]


def rounding(found: Mapping[str, Any]) -> "list[Table]":
    """bfloat16 beside float32."""
    title = f"bfloat16 beside float32, {found['windows']} windows, largest difference {found['largest_difference']:.2g}"
    made = table(title, "criterion", "Spearman", "distinct in bfloat16", "in float32")
    for name, row in found["criteria"].items():
        spearman = NOTHING if row["spearman"] is None else f"{row['spearman']:.5f}"
        add_row(made, name, spearman, row["distinct"], row["distinct_float32"])
    return [made]


def scaling(found: Mapping[str, Any]) -> "list[Table]":
    """Devices and what they cost the host."""
    made = table(
        "devices (2048 tokens of a batch on each)", "devices", "tokens/s (low to high)", "host ms per batch",
        "host ms per batch and device",
    )  # fmt: skip
    for count, row in found.items():
        add_row(
            made, count, rate(row["tokens_per_second"]), number(1e3 * row["host_seconds_per_batch"]["median"]),
            number(1e3 * row["host_seconds_per_batch_and_device"]["median"]),
        )  # fmt: skip
    return [made]


def ceilings(found: Mapping[str, Any]) -> "list[Table]":
    """What the first device can do at most."""
    made = table("ceilings of one device", "what", "median (low to high)")
    size, dtype = found["matmul_size"], found["matmul_dtype"]
    add_row(made, f"matmul {size}^3 {dtype}, TFLOP/s", rate(found["matmul_flops_per_second"], 1e12, 3))
    add_row(made, "device copy, read and written GB/s", rate(found["copy_bytes_per_second"], 1e9, 1))
    peak = found["datasheet_flops_per_second"]
    add_row(made, "data sheet bfloat16, TFLOP/s", NOTHING if peak is None else f"{peak / 1e12:.0f}")
    return [made]


def end_to_end(found: Mapping[str, Any]) -> "list[Table]":
    """Files beside the scorer alone."""
    title = f"{found['documents']} documents of token ids, {found['parts']} parts"
    made = table(title, "side", "tokens/s (low to high)", "tokens/CPU-s", "padding", "MFU")
    for name, side in found["sides"].items():
        cpu = f"{side['tokens_per_cpu_second']['median']:.0f}"
        add_row(made, name, rate(side["tokens_per_second"]), cpu, percent(side["padding"]), percent(side["mfu"]))
    return [made, _one_ratio(found["ratio"], "Parquet to Parquet / scorer alone")]


def rate(of: Mapping[str, float], unit: float = 1.0, decimals: int = 0) -> str:
    """A median with the lowest and the highest value, in a unit."""
    median, low, high = (f"{of[name] / unit:.{decimals}f}" for name in ("median", "low", "high"))
    return f"{median} ({low} to {high})"


def percent(share: float | None) -> str:
    """A share with one decimal; None is a dash."""
    return NOTHING if share is None else f"{share:.1%}"


def _one_ratio(ratio: Mapping[str, Any], name: str) -> "Table":
    made = table("times as many tokens per second", *_RATIOS)
    add_row(made, name, *_ratio_cells(ratio))
    return made


def _ratio_cells(ratio: Mapping[str, Any]) -> list[str]:
    return [number(ratio[clock][kind]) for clock in ("wall", "cpu") for kind in ("of_medians", "median_of_rounds")]
