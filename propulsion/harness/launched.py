"""What `accelerate launch` was told, by its config file or its options, in the terms of this harness.

accelerate hands it over in environment variables that it and transformers read in many places: its FSDP plugin would
cut what is trained as well, transformers would leave the weights of every process but the first empty (what
`fsdp_cpu_ram_efficient_loading` means, and it is on by default), and its precision would win over an fp32 that the
record names. So they are read once, here, and taken out; what has no counterpart here is refused.
"""

from __future__ import annotations

import functools
import os
from collections.abc import MutableMapping
from dataclasses import dataclass

from propulsion.harness.errors import UserError

USE = "ACCELERATE_USE_"
FOREIGN = {
    "DEEPSPEED": "DeepSpeed",
    "MEGATRON_LM": "Megatron-LM",
    "PARALLELISM_CONFIG": "a parallelism_config",
    "SAGEMAKER": "SageMaker",
}
TAKEN = ("ACCELERATE_USE_FSDP", "ACCELERATE_MIXED_PRECISION", "FSDP_CPU_RAM_EFFICIENT_LOADING")
RESHARDS = {"true": True, "full_shard": True, "false": False, "shard_grad_op": False}  # FSDP2's and FSDP1's words
ON = ("true", "1", "yes", "on")


@dataclass(frozen=True)
class Launch:
    """`shards`: by FSDP; `reshards`: weights are let go of after the forward pass; `blocks`: classes cut as one."""

    by_accelerate: bool = False
    shards: bool = False
    reshards: bool = True
    blocks: tuple[str, ...] = ()
    precision: str = ""  # fp16 | bf16; "": left to training.precision
    on_cpu: bool = False


@functools.cache
def launch() -> Launch:
    """How this process was launched. The first call takes it out of the environment.

    Raises:
        UserError: accelerate's configuration asks for what there is not.
    """
    return read(os.environ)


def read(variables: MutableMapping[str, str]) -> Launch:
    """What the variables of `accelerate launch` say; those that others would act upon are removed."""

    def said(name: str) -> str:
        return variables.get(name, "").strip().lower()

    for name, title in FOREIGN.items():
        if said(USE + name) in ON:
            raise UserError(f"accelerate's configuration asks for {title}: use distributed_type MULTI_GPU or FSDP")
    if said("ACCELERATE_DYNAMO_BACKEND") not in ("", "no"):
        raise UserError("accelerate's configuration compiles the model: leave dynamo_backend out")
    if said("ACCELERATE_MIXED_PRECISION") not in ("", "no", "bf16", "fp16"):
        raise UserError(f"accelerate's mixed_precision={said('ACCELERATE_MIXED_PRECISION')}: use no, bf16 or fp16")
    on_cpu = said(f"{USE}CPU") in ON
    if on_cpu and "MASTER_PORT" in variables and "WORLD_SIZE" not in variables:
        raise UserError(
            "accelerate starts one process on CPUs, however many are asked for: leave use_cpu and --cpu out "
            "(distributed_type: MULTI_GPU falls back to CPUs), or use torchrun"
        )
    shards = said(f"{USE}FSDP") in ON
    found = Launch(
        by_accelerate="ACCELERATE_MIXED_PRECISION" in variables,
        shards=shards,
        reshards=_reshards(variables) if shards else True,
        blocks=_blocks(variables) if shards else (),
        precision=said("ACCELERATE_MIXED_PRECISION").removeprefix("no"),
        on_cpu=on_cpu,
    )
    for name in TAKEN:
        variables.pop(name, None)
    return found


def _reshards(variables: MutableMapping[str, str]) -> bool:
    """Check the `fsdp_config`; whether gathered weights are let go of after the forward pass."""
    for name, key, mend in (
        ("FSDP_OFFLOAD_PARAMS", "fsdp_offload_params", "leave it out"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "fsdp_activation_checkpointing", "use training.gradient_checkpointing=true"),
    ):
        if variables.get(name, "").lower() in ON:
            raise UserError(f"accelerate's {key}=true: {mend}")
    words = {"fsdp_reshard_after_forward": variables.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower()}
    if variables.get("FSDP_VERSION", "1") == "1":  # the older key, read by FSDP1 alone
        words["fsdp_sharding_strategy"] = variables.get("FSDP_SHARDING_STRATEGY", "full_shard").lower()
    for key, word in words.items():
        if word not in RESHARDS:
            raise UserError(f"accelerate's {key}={word}: use true (FULL_SHARD) or false (SHARD_GRAD_OP)")
    return all(RESHARDS[word] for word in words.values())


def _blocks(variables: MutableMapping[str, str]) -> tuple[str, ...]:
    """Names of the classes to cut as one, where the `fsdp_config` has any; else the model's own."""
    policy = variables.get("FSDP_AUTO_WRAP_POLICY", "TRANSFORMER_BASED_WRAP").upper()
    if policy != "TRANSFORMER_BASED_WRAP":
        raise UserError(f"accelerate's fsdp_auto_wrap_policy={policy}: use TRANSFORMER_BASED_WRAP")
    names = variables.get("FSDP_TRANSFORMER_CLS_TO_WRAP", "").split(",")
    return tuple(name.strip() for name in names if name.strip())
