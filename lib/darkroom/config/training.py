"""The sections about training, stages, budget, validation, restoring, tracking and ablation."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from .kinds import (
    Amount,
    ColourFix,
    Count,
    Decay,
    Integer,
    Names,
    Number,
    Positive,
    Section,
    Share,
    Switch,
    Tile,
    Truth,
    Weight,
    _phrases,
)

Tracker = Literal["jsonl", "swanlab", "tensorboard", "wandb"]


class Checkpointing(Section):
    """Which activations are recomputed instead of kept: off, on, or a list of modules."""

    network: Switch = "off"
    """The trained network."""
    decoder: Switch = "off"
    """The decoder behind it."""
    discriminator: Switch = "off"
    """The discriminator's backbone."""


class EarlyStopping(Section):
    """Stop when validation no longer improves."""

    metric: str | None = None
    """Metric that decides; null: that of `train.best`."""
    patience: Count = 5
    """Validations without improvement before the run stops."""
    min_delta: Weight = 0.0
    """What counts as an improvement, in the metric's unit."""


class Train(Section):
    """Batch, horizon, precision, and what is logged and saved when. Every `…_every` is in steps."""

    effective_batch: Count = 6
    """Samples of one optimizer step, over all micro batches and processes."""
    micro_batch: Count | None = None
    """Samples computed at once; must divide the effective batch; null: fitted."""
    tail_micro_batch: Count | None = None
    """Samples decoded and judged at once after the U-Net; null: all of them, in one graph."""
    steps: Count | None = None
    """Horizon in optimizer steps; comes before hours, images and epochs."""
    hours: Positive | None = None
    """Horizon in hours, turned into steps once; comes before images and epochs."""
    images: Count | None = None
    """Horizon in samples seen; comes before epochs."""
    epochs: Positive | None = 1.0
    """Horizon in passes over the training samples."""
    extend: Integer | None = None
    """Steps beyond the horizon, for a finished run that should go on."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Number format of the forward and backward pass."""
    checkpointing: Checkpointing = Checkpointing()
    """Activations recomputed instead of kept."""
    clip: Positive | None = 1.0
    """Largest gradient norm of a phase; null: no clipping."""
    ema_decay: Decay | None = 0.999
    """Decay of the averaged weights; null: no average."""
    ema_device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the average is kept."""
    lpips_autocast: Truth = False
    """LPIPS and VGG features in the run's precision instead of float32: half their memory."""
    share_step: Truth = False
    """The discriminator takes the generator's samples and restored images of the same step."""
    log_every: Count | None = 1
    """Write a row of train.jsonl; null: never."""
    image_every: Count | None = 100
    """Log restored images; null: never."""
    grad_norm_every: Count | None = 100
    """Measure the gradient norm of every loss term; null: never."""
    grad_norm_modules: Names = ["conv_out"]
    """Modules, by the end of their name, whose gradient norms are measured."""
    save_every: Count | None = 500
    """Save a checkpoint; null: at the end only."""
    keep_last: Count | None = 2
    """Checkpoints kept beside the best; null: all."""
    best: str | None = None
    """Metric of the best checkpoint; null: final_score where LPIPS is there, else psnr_y."""
    early_stopping: EarlyStopping | None = None
    """Stop when validation no longer improves; null: never."""

    @property
    def accumulation(self) -> int:
        """Micro batches of one optimizer step on one process; 1 while `micro_batch` is null."""
        return self.effective_batch // (self.micro_batch or self.effective_batch)


class OptimPhase(Section):
    """The optimizer of one phase."""

    name: Literal["adamw", "adamw8bit", "rmsprop"] = "adamw"
    """The optimizer."""
    lr: Weight = 1.0e-5
    """Base learning rate."""
    betas: Annotated[tuple[Decay, Decay], Field()] = (0.9, 0.999)
    """Decay of the gradient's first and second moment (adamw)."""
    eps: Positive = 1.0e-8
    """Added to the root of the second moment."""
    weight_decay: Weight = 0.01
    """Decoupled weight decay."""
    unfrozen_lr: Positive | None = None
    """Base learning rate of what `model.unfreeze` adds; null: as lr."""
    unfrozen_warmup: Integer = 0
    """Steps over which that rate grows linearly, from the step at which it is unfrozen."""
    implementation: Literal["auto", "fused", "foreach", "loop"] = "auto"
    """How the step is computed; auto: fused on a GPU, a loop elsewhere."""


class Schedule(Section):
    """The learning rate as a function of the step."""

    kind: Literal["constant", "cosine"] = "constant"
    """What follows the warm-up."""
    warmup: Amount = 0
    """Linear warm-up, in steps or "5%" of the horizon."""
    min_lr: Weight = 0.0
    """Learning rate at the cosine's end."""


class Optim(Section):
    """An optimizer a phase, and the schedule they share."""

    generator: OptimPhase = OptimPhase()
    """one_step_gan's generator."""
    discriminator: OptimPhase = OptimPhase()
    """one_step_gan's discriminator."""
    network: OptimPhase = OptimPhase()
    """regression's network."""
    denoiser: OptimPhase = OptimPhase()
    """conditional_diffusion's denoiser."""
    velocity: OptimPhase = OptimPhase()
    """flow_matching's velocity network."""
    language_model: OptimPhase = OptimPhase()
    """image_to_svg's language model."""
    schedule: Schedule = Schedule()
    """The learning rate over the run."""

    @property
    def phases(self) -> dict[str, OptimPhase]:
        """The optimizer sections by phase name."""
        return {name: value for name, value in self if isinstance(value, OptimPhase)}

    def for_phase(self, name: str) -> OptimPhase:
        """Return a phase's optimizer section; a phase without one gets the defaults."""
        return self.phases.get(name, OptimPhase())


class Stage(Section):
    """From `start` on, some keys have other values; null in place of a stage takes it back."""

    start: Amount = 0
    """First step of the stage, or "20%" of the horizon."""
    ramp: Amount | None = None
    """Over this many steps (or per cent) weights and rates move linearly; null: at once."""
    changes: dict[str, Any] = {}
    """Dotted keys and their values, such as {loss.gan: 0.3}."""


class Budget(Section):
    """What the machine gives; null: no limit."""

    gpu: str | None = None
    """Name of the GPU planned for."""
    memory_gib: Positive | None = None
    """GPU memory in GiB."""
    hours: Positive | None = None
    """Wall-clock time in hours."""
    disk_gib: Positive | None = None
    """Disk space of the run in GiB."""
    processes: Count = 1
    """Processes that train together, one for each GPU; a launcher's own number goes before."""
    alarm: Annotated[Share, Field(gt=0)] = 0.85
    """Share of the card's memory that raises an alarm."""


class Validation(Section):
    """What is scored, how often and with which weights."""

    data: str | None = None
    """Folder or parquet to score, below `paths.data`; null: the source's held-out part."""
    every: Count | None = 500
    """Steps between validations (and one at the end); null: never."""
    samples_per_type: Count | None = None
    """Cap of images a degradation; null: all."""
    metrics: Names = ["psnr_y", "ssim_y", "lpips"]
    """Metrics: psnr_y, ssim_y, psnr_rgb, ssim_rgb, charbonnier, lpips, or any of pyiqa's names."""
    weights: Literal["ema", "raw"] = "ema"
    """Score the averaged or the raw weights."""
    seed: Integer = 231
    """Seed of the validation draws."""
    max_time_share: Annotated[Share, Field(gt=0)] | None = None
    """Largest share of the time that validation may take: `every` is stretched; null: no limit."""


class Restore(Section):
    """How a trained model restores an image."""

    num_steps: Count = 25
    """Network calls of a sampler."""
    sampler: Literal["ddim", "euler", "midpoint"] = "ddim"
    """The sampler; ddim has trailing timesteps."""
    guidance: Number = 1.0
    """Classifier-free guidance; 1 is none."""
    tile: Tile | None = "auto"
    """Side of a tile in pixels; auto: the whole image where it fits; null: always whole."""
    overlap: Decay = 0.5
    """Share by which neighbouring tiles overlap."""
    upscale: Annotated[Positive, Field(ge=1)] = 1.0
    """Enlargement of the input."""
    colour_fix: ColourFix = "off"
    """Low frequencies (wavelet) or statistics (adain) from the input; undoes haze correction."""


class Tracking(Section):
    """Where the curves go beside train.jsonl."""

    report_to: Annotated[list[Tracker], BeforeValidator(_phrases)] = ["jsonl"]
    """Trackers; jsonl is always written."""
    project: str = "darkroom"
    """Project name in the trackers."""
    mode: Literal["local", "offline", "cloud", "disabled"] = "local"
    """cloud: their server, with your account; local, offline: this machine; disabled: nowhere."""


class Ablation(Section):
    """Variants of this run that notebook 05 trains and compares."""

    grid: dict[str, list[Any]] = {}
    """Dotted key to a list of values; every combination is a variant."""
    variants: dict[str, dict[str, Any]] = {}
    """Name to a flat dict of dotted keys."""
    seeds: list[Integer] = []
    """Every variant is trained once a seed; empty: with the run's own seed."""
    executor: Literal["local", "ray"] = "local"
    """Who runs the variants: local processes, or Ray."""
