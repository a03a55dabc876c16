"""The sections about data, degradation, model and loss: each key, its type, default, meaning."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from .kinds import (
    Count,
    Decay,
    Integer,
    Location,
    Names,
    Positive,
    Section,
    Severity,
    Share,
    Timestep,
    Truth,
    Weight,
    _phrases,
)

Type = Literal["Blur", "Haze", "Lowlight", "Rain", "Snow"]
Domain = Literal[
    "Gaussian", "Motion", "LowResolution", "Compression", "Scan", "PrintScan", "LocalBlur",
    "Background", "Noise", "Fading", "LineGaps", "Text", "Lines", "ScanLines", "Threshold",
    "Spectral", "Mixed",
]  # fmt: skip
Domains = Annotated[list[Literal[Type, Domain]], BeforeValidator(_phrases), Field(min_length=1)]
Types = Annotated[list[Type], BeforeValidator(_phrases), Field(min_length=1)]


class Paths(Section):
    """Where things lie on this machine; set in params/local.yaml, no part of the hash."""

    data: Location = "."
    """Folder that `data.train`, `data.prefix` and `validation.data` start from; repo root."""
    models: Location = "models"
    """Folder of weights the user supplies."""
    runs: Location = "runs"
    """Folder that holds a directory for every run."""


class Data(Section):
    """Which images a run trains on, and how a sample is cut from them."""

    source: Literal[
        "photographs", "folder", "pairs", "parquet", "shards", "charts", "vessels", "icons"
    ] = "photographs"
    """photographs, charts (both embedded), folder (of images), pairs (<Type>/{LQ,GT}), parquet,
    shards (WebDataset tars)."""
    train: str | None = None
    """Folder (of images, pairs, shards) or parquet file to train on, below `paths.data` unless
    absolute."""
    chart_size: Annotated[Count, Field(ge=64, le=512)] = 128
    """Side in pixels at which embedded charts are drawn."""
    num_charts: Count = 256
    """Embedded charts to train on; 24 others are held out, whatever the number."""
    image_key: str = "image_path"
    """Parquet column with the image to degrade."""
    lq_key: str = "lq_path"
    """Parquet column with the degraded image of a pair."""
    gt_key: str = "gt_path"
    """Parquet column with the clean image of a pair."""
    prompt_key: str | None = "prompt"
    """Parquet column, or key in the .json of others' shards, with the prompt; null: none."""
    prefix: str = ""
    """Put before every path in the parquet; below `paths.data` unless absolute."""
    types: Types | None = None
    """Degradations used of a paired set; null: all."""
    sample_ratio: Annotated[Share, Field(gt=0)] = 1.0
    """Share of the training samples used: seeded, stratified by degradation, never validation."""
    crop: Literal["none", "center", "random"] = "random"
    """How a training sample is cut, joint for LQ and GT."""
    crop_size: Count = 512
    """Side of the crop in pixels."""
    hflip: Truth = True
    """Flip half of the samples, joint for LQ and GT."""
    rotate: Truth = False
    """Flip vertically and transpose, each with probability 1/2, joint for LQ and GT."""
    tone_jitter: Share = 0.0
    """Strength of random contrast, gamma, exposure and tint of images degraded on the fly."""
    prompt: str = ""
    """Text for samples that have none of their own."""
    p_empty_prompt: Share = 0.0
    """Probability that a training sample's prompt is emptied."""
    workers: Integer | None = None
    """Loader processes; null: from the machine, one core left to the trainer."""
    prefetch: Count | None = None
    """Batches each worker keeps ready; null: from the machine."""


class Degradation(Section):
    """How an image without a degraded partner is degraded on the fly."""

    kind: Literal["five_types", "real_esrgan", "document", "none"] = "five_types"
    """five_types, document (each one type per sample), real_esrgan (second order), none."""
    types: Domains | None = None
    """Which of the kind's types are drawn, one named twice twice as often; null: its usual ones."""
    severity: Severity = (0.0, 1.0)
    """Range drawn from, in 0..1: [low, high], easy [0, .33], medium [.33, .67], hard [.67, 1]."""


class Model(Section):
    """The family, its size, what it starts from and which part of it is trained."""

    recipe: Literal[
        "regression", "one_step_gan", "conditional_diffusion", "flow_matching", "image_to_svg"
    ] = "regression"
    """The family."""
    size: Literal["tiny", "middle", "full"] = "tiny"
    """A named size: tiny (minutes on a CPU), middle (from scratch on a card), full (published)."""
    base: str | None = None
    """Folder (below `paths.models`) or hub id of the base weights, or the run that adapters stand
    on; null: random weights."""
    init_from: str | None = None
    """A run's name, or a .safetensors/.pth file, whose weights this run starts from."""
    model_t: Timestep = 200
    """Timestep the one-step U-Net is told."""
    coeff_t: Timestep = 200
    """Timestep whose noise level turns epsilon into x0."""
    prediction: Literal["epsilon", "v", "x0"] = "v"
    """What a diffusion network predicts."""
    noise_schedule: Literal["linear", "scaled_linear", "cosine"] = "linear"
    """How much noise a timestep of the training has."""
    space: Literal["pixel", "latent"] = "pixel"
    """Where is diffused: on images, or on an autoencoder's latents."""
    autoencoder: str | None = None
    """Stable Diffusion folder or hub id with the autoencoder of the latents; null: random."""
    lora_rank: Count | None = None
    """Rank of the adapters; null: full fine-tuning."""
    lora_alpha: Positive | None = None
    """Scale of the adapters; null: equal to the rank."""
    lora_dropout: Decay = 0.0
    """Dropout before the adapters; if on, it depends on the split into micro batches."""
    lora_modules: Names | None = None
    """Module names that get an adapter; null: the recipe's own list."""
    lora_blocks: Names | None = None
    """Only modules below these blocks get one; null: all."""
    unfreeze: Names | None = None
    """Blocks of a frozen base that are trained beside the adapters; a stage may name them."""
    trunk: str = "convnext_large_d_320"
    """The discriminator's frozen backbone, by its open_clip name; tiny: a small random one."""
    trunk_weights: str | None = "laion2b_s29b_b131k_ft_soup"
    """The backbone's open_clip tag, or a file below `paths.models`; null: random weights."""
    condition_channels: Integer = 0
    """Channels of the condition (such as a mask) beside the image."""
    width: Count | None = None
    """Transformer width; null: the size's own."""
    depth: Count | None = None
    """Transformer blocks; null: the size's own."""
    heads: Count | None = None
    """Attention heads; null: the size's own."""
    kv_heads: Count | None = None
    """Heads of keys and values; null: the size's own."""
    grid: Count = 200
    """Side of the SVG coordinate grid."""
    max_seq_length: Count = 2048
    """Tokens of a training sequence; longer samples are rejected."""


class Loss(Section):
    """Weights of the loss terms; 0 is off."""

    l2: Weight = 1.0
    """Squared error."""
    l1: Weight = 0.0
    """Absolute error."""
    charbonnier: Weight = 0.0
    """Smooth absolute error."""
    psnr: Weight = 0.0
    """Minus a tenth of the PSNR in dB: easy and hard images weigh the same."""
    ssim: Weight = 0.0
    """1 - SSIM of luminance."""
    lpips: Weight = 0.0
    """LPIPS with the VGG trunk; needs its weights."""
    vgg: Weight = 0.0
    """VGG feature distance; needs its weights."""
    gan: Weight = 0.0
    """The generator's adversarial term."""
    velocity: Weight = 0.0
    """Flow matching's velocity error."""
    cross_entropy: Weight = 0.0
    """Token cross-entropy."""
