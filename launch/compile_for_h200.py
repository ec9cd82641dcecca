"""Compiles the 1.3B scorer for one H200 on a machine that has none: memory and buffers without a GPU.

    pip download --no-deps jax-cuda13-pjrt && unzip jax_cuda13_pjrt-*.whl -d plugin
    JAX_PLATFORMS=cpu python launch/compile_for_h200.py plugin/jax_plugins/xla_cuda13/xla_cuda_plugin.so

Optional, and no part of the tests: it registers the plugin and makes the topology through private interfaces of JAX
that may change. Nothing is autotuned without a GPU, so the kernels are not those of a real run; the sizes are. A line
that says `failed to compute layout` is a candidate of Triton's that the compiler gives up.
"""

import argparse
import dataclasses
import re
import time
from unittest import mock

import jax
import jax.numpy as jnp
from jax._src import xla_bridge
from jax._src.cudnn import fused_attention_stablehlo
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from qurating_jax.models import attention_kernels, heads, llama
from qurating_jax.models.config import PRESETS, ComputeConfig

H200 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: 4800000000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: 143000000000 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 } registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 12 } device_description_str: "NVIDIA H200"
"""


def main() -> None:
    """Prints, per attention kernel, compile seconds, memory, and whether a buffer of tokens by tokens is left."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("plugin", help="xla_cuda_plugin.so of the jax-cuda13-pjrt wheel")
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=512)
    arguments = parser.parse_args()
    xla_bridge.register_plugin("cuda", library_path=arguments.plugin, options={})
    topology = xla_bridge.make_pjrt_topology("cuda", "h200", target_config=H200, topology="1x1x1")
    device = topologies.TopologyDescription(topology._make_compile_only_devices()).devices[0]
    for attention in ("xla", "cudnn"):
        report(attention, SingleDeviceSharding(device), arguments.rows, arguments.tokens)


def report(attention: str, sharding: SingleDeviceSharding, rows: int, tokens: int) -> None:
    """Compiles one batch of `rows` windows of `tokens` tokens in bfloat16."""
    config = dataclasses.replace(PRESETS["sheared-llama-1.3b"], num_criteria=4)
    compute = ComputeConfig(dtype="bfloat16", attention=attention)
    shaped = lambda shape, dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)  # noqa: E731
    params = jax.tree.map(lambda leaf: shaped(leaf.shape, jnp.bfloat16), llama.abstract(config))
    score = jax.jit(lambda params, ids, sizes: heads.window_scores(params, config, ids, sizes, compute=compute))
    hopper = attention_kernels.Accelerator("gpu", (9, 0))
    began = time.perf_counter()
    with (
        mock.patch.object(attention_kernels, "accelerator", return_value=hopper),
        mock.patch.object(fused_attention_stablehlo, "check_cudnn_version", return_value=91200),
        mock.patch.object(fused_attention_stablehlo, "check_compute_capability", return_value=True),
    ):
        compiled = score.lower(params, shaped((rows, tokens), jnp.int32), shaped((rows, 1), jnp.int32)).compile()
    memory, program = compiled.memory_analysis(), compiled.as_text()
    squares = sorted(set(re.findall(rf"(?:f32|bf16)\[[0-9,]*{tokens},{tokens}\]", program)))
    print(
        f"{attention:5} {rows} x {tokens} tokens: compiled in {time.perf_counter() - began:.0f} s, parameters "
        f"{memory.argument_size_in_bytes / 1e9:.2f} GB, temporary {memory.temp_size_in_bytes / 1e9:.2f} GB, "
        f"{len(re.findall('__cudnn.fmha', program))} calls of cuDNN's attention, "
        f"buffers of {tokens} x {tokens}: {', '.join(squares) or 'none'}",
        flush=True,
    )


if __name__ == "__main__":
    main()
