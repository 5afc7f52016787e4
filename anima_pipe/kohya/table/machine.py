"""Options of precision, memory, speed and several processes."""

from typing import Final

from anima_pipe.kohya.rows import (
    CACHING,
    TRAINING,
    Option,
    flag,
    group,
    integer,
    no_op,
    path,
    refused,
    text,
)

_PRECISION: Final = group(
    "Precision and device",
    TRAINING,
    text(
        "device",
        "Where to compute: auto, cpu, cuda, cuda:1, mps.",
        default="auto",
        commands=CACHING,
        test="test_options_of_the_machine.py::test_device_is_where_weights_are_put",
    ),
    text(
        "mixed_precision",
        "Precision of arithmetic and of frozen weights; what trains stays fp32. bf16 is usual, no "
        "is fp32.",
        default="no",
        choices=("no", "fp16", "bf16"),
        test="test_options_of_the_machine.py::test_mixed_precision_is_that_of_the_frozen_weights",
    ),
    flag(
        "full_bf16",
        "Keep the adapter's matrices, or without an adapter all weights, in bf16 too, with "
        "mixed_precision bf16. What a step adds is rounded up or down by chance, so that small "
        "steps are not lost on average.",
        test="test_rounding.py::test_a_run_in_bf16_throughout_is_resumed_to_the_bit",
    ),
    *refused(
        "in fp16 the gradients of an adapter leave its range",
        "remove it; full_bf16 keeps the adapter in 16 bits",
        flag("full_fp16", "Train in fp16 throughout."),
    ),
    flag(
        "fp8_base",
        "Keep the weights of the frozen blocks in 8 bits: half the memory of bf16. Whole numbers "
        "with a scale per row, a third of the error of Kohya's fp8.",
        test="test_eight_bit.py::test_a_run_with_a_base_in_8_bits_trains_nearly_the_same",
    ),
    flag(
        "fp8_base_unet",
        "The same as fp8_base.",
        test="test_eight_bit.py::test_a_run_with_a_base_in_8_bits_trains_nearly_the_same",
    ),
    *refused(
        "Kohya's trainer of Anima has no base in scaled 8-bit floats either",
        "use fp8_base, which keeps the blocks in 8 bits with a scale per row",
        flag("fp8_scaled", "Keep the base in scaled 8-bit floats."),
    ),
)

_MEMORY: Final = group(
    "Memory",
    TRAINING,
    flag(
        "gradient_checkpointing",
        "Recompute activations: less memory, about a third slower.",
        test="test_options_of_the_machine.py::test_gradient_checkpointing_runs_each_block_again_for_its_gradients",
    ),
    *no_op(
        "swapping blocks to the CPU is not there yet, and all of them stay on the device; "
        "gradient_checkpointing and fp8_base save memory",
        integer("blocks_to_swap", "Blocks kept on the CPU in turn.", asks_nothing=(0,)),
    ),
    *no_op(
        "keeping activations on the CPU is not there yet; gradient_checkpointing saves most",
        flag("cpu_offload_checkpointing", "Keep checkpoints on the CPU."),
        flag("unsloth_offload_checkpointing", "Keep checkpoints on the CPU, asynchronously."),
    ),
    *no_op(
        "each encoder is loaded when its stage needs it, and freed afterwards",
        flag("lowram", "Load weights to the GPU at once."),
        flag("highvram", "Do not free GPU memory in between."),
    ),
)

_ATTENTION: Final = group(
    "Attention",
    TRAINING,
    *no_op(
        "attention is torch's own, which chooses the fastest exact kernel",
        flag("xformers", "Attention by xformers.", aliases=("xfomers",)),
        flag("sdpa", "Attention by torch."),
        flag("mem_eff_attn", "Attention in pieces."),
        flag("split_attn", "Attention sample by sample."),
        text(
            "attn_mode",
            "Kind of attention.",
            aliases=("anima_attention_backend",),
            choices=("torch", "sdpa", "xformers", "flash", "sageattn"),
        ),
    ),
)

_SPEED: Final = group(
    "Speed",
    TRAINING,
    flag(
        "deterministic",
        "Take only kernels that give the same bits each time. On a GPU the backward pass of "
        "attention does not by default; without it a run and its repetition, or what is resumed, "
        "differ in the last bits. It costs speed in that pass, most with long sequences, and "
        "nothing on a processor, where all runs are so.",
        test="test_options_of_the_machine.py::test_deterministic_is_asked_of_torch_while_training_alone",
    ),
    *no_op(
        "compiling is not there yet; the run is the same, at its usual speed",
        flag("compile", "Compile each block."),
        text("compile_backend", "Backend of the compiler.", default="inductor"),
        text("compile_mode", "Mode of the compiler.", default="default"),
        text("compile_dynamic", "Whether shapes may vary.", asks_nothing=("auto",)),
        flag("compile_fullgraph", "Refuse breaks in the graph."),
        integer("compile_cache_size_limit", "Shapes compiled for at most."),
        flag("torch_compile", "Compile the whole model."),
        text("dynamo_backend", "Backend of the compiler.", default="inductor"),
    ),
    *no_op(
        "a run in fp32 is meant to be exact, and one in bf16 or fp16 has no use for it; "
        "mixed_precision bf16 is faster than TF32",
        flag("cuda_allow_tf32", "Multiply in TF32."),
    ),
    *no_op(
        "a training step has no convolutions for cuDNN to choose algorithms for",
        flag("cuda_cudnn_benchmark", "Let cuDNN try its algorithms."),
    ),
)

_PROCESSES: Final = group(
    "Several processes",
    TRAINING,
    integer(
        "ddp_timeout",
        "Minutes that a process waits for another; 0 or not set: 30. For a cache to be filled it "
        "waits a week.",
        minimum=0,
        zero_is_none=True,
        test="test_processes.py::test_the_ddp_options_reach_the_processes",
    ),
    flag(
        "ddp_gradient_as_bucket_view",
        "Gradients lie in the buffers that are exchanged: one copy less of them.",
        test="test_processes.py::test_the_ddp_options_reach_the_processes",
    ),
    flag(
        "ddp_static_graph",
        "Promise that every step uses the same parameters; not so with module_dropout.",
        test="test_processes.py::test_the_ddp_options_reach_the_processes",
    ),
    *no_op(
        "DeepSpeed serves full training; an adapter's gradients and states are small, and "
        "accelerate launch trains on several GPUs without it",
        flag("deepspeed", "Use DeepSpeed."),
        integer("zero_stage", "Stage of ZeRO.", default=2),
        text("offload_optimizer_device", "Where the optimizer's state lies."),
        path("offload_optimizer_nvme_path", "The same, on disk."),
        text("offload_param_device", "Where the weights lie."),
        path("offload_param_nvme_path", "The same, on disk."),
        flag("zero3_init_flag", "Build the model in pieces."),
        flag("zero3_save_16bit_model", "Save in 16 bits."),
    ),
    *refused(
        "in fp16 the gradients of an adapter leave its range",
        "remove it; full_bf16 keeps the adapter in 16 bits",
        flag("fp16_master_weights_and_gradients", "Keep master weights in fp16."),
    ),
)

MACHINE: Final[tuple[Option, ...]] = (
    *_PRECISION,
    *_MEMORY,
    *_ATTENTION,
    *_SPEED,
    *_PROCESSES,
)
