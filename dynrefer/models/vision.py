"""Vision encoders: any that Transformers or open_clip can load -> patches (N, 1+P, D), row 0 a summary of the view."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import AutoConfig, AutoModel, Blip2VisionModel, CLIPVisionModel, PreTrainedConfig, SiglipVisionModel

from dynrefer.errors import suggestion

# Towers whose AutoModel is the whole two-tower model, or none.
VISION_CLASSES = {
    "blip_2_vision_model": Blip2VisionModel,
    "clip_vision_model": CLIPVisionModel,
    "siglip_vision_model": SiglipVisionModel,
}


# What convolutional encoders normalize with: the statistics of each batch, those that they were saved with, or each
# picture's own (and filters their own), by which a picture's features do not depend on the others of its batch.
NORMS = ("batch", "frozen", "group")
GROUP = 4  # channels normalized together


class OpenClipVisionConfig(PreTrainedConfig):
    """An open_clip tower by name: architecture such as "EVA01-g-14"; model_cfg holds the tower's own settings when they
    are not a published architecture's; hidden_size and patch_size are filled in from the tower."""

    model_type = "open_clip_vision"
    architecture: str = "EVA01-g-14"
    image_size: int = 224
    model_cfg: dict | None = None


AutoConfig.register("open_clip_vision", OpenClipVisionConfig)


class OpenClipVision(nn.Module):
    """open_clip's image tower, giving last-layer tokens (N, 1+P, D) or a map (N, D, g, g)."""

    def __init__(self, config: OpenClipVisionConfig):
        super().__init__()
        import open_clip

        if config.model_cfg is not None:
            from open_clip.model import CLIPVisionCfg, _build_vision_tower

            settings = dict(config.model_cfg)
            self.tower = _build_vision_tower(settings.pop("embed_dim", 512), CLIPVisionCfg(**settings))
        elif config.architecture not in open_clip.list_models():  # hub ids and folders too, which it would read
            raise ValueError(
                f"vision encoder {config.architecture!r}: not one of open_clip.list_models()."
                f"{suggestion(config.architecture, open_clip.list_models())}"
            )
        else:
            self.tower = open_clip.create_model(config.architecture, force_image_size=config.image_size).visual

    def forward(self, pixel_values: Tensor) -> Tensor:
        if hasattr(self.tower, "trunk"):  # a timm trunk
            return self.tower.trunk.forward_features(pixel_values)
        output = self.tower.forward_intermediates(
            pixel_values, indices=1, normalize_intermediates=True, intermediates_only=True
        )
        return output["image_intermediates"][-1]


class VisionEncoder(nn.Module):
    """One encoder behind one interface.

    config: the tower's own config; image_size: side S of the views in pixels; shape: (D, g) where known already;
    norm: one of NORMS, for towers with batch normalization.
    Attributes: width D; grid g (P = g * g); model, the tower itself.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        image_size: int,
        shape: tuple[int, int] | None = None,
        norm: str = "batch",
    ):
        super().__init__()
        if isinstance(config, OpenClipVisionConfig):
            self.model = OpenClipVision(config)
        elif config.model_type in VISION_CLASSES:
            self.model = VISION_CLASSES[config.model_type](config)
        else:
            self.model = AutoModel.from_config(config, trust_remote_code=False)
        if config.model_type == "blip_2_vision_model":
            self.model.post_layernorm.eps = 1e-5  # BLIP-2's ln_vision; transformers gives it the blocks' 1e-6
        self.config, self.image_size, self.norm = config, image_size, norm
        if norm == "group":
            use_group_norm(self.model)
        arguments = inspect.signature(self.model.forward).parameters
        native = getattr(config, "image_size", image_size)
        native = native[0] if isinstance(native, list | tuple) else native
        self.extra = {}
        if native != image_size and "interpolate_pos_encoding" in arguments:
            self.extra["interpolate_pos_encoding"] = True
        self.patchwise = "spatial_shapes" in arguments  # SigLIP 2 takes patches, not pictures
        self.convolutional = hasattr(config, "depths")
        self.width, self.grid = shape or self._measure()

    def lay_out(self) -> None:
        """Puts a convolutional tower's weights channels-last, much the faster layout for convolutions on CPU."""
        if self.convolutional:
            self.model.to(memory_format=torch.channels_last)

    def train(self, mode: bool = True) -> VisionEncoder:
        super().train(mode)
        if self.norm == "frozen":
            for _, module in batch_norms(self.model):
                module.eval()
        return self

    @torch.no_grad()
    def measure_norms(self, views: Tensor) -> None:
        """The statistics of normalized views (N, 3, S, S), layer by layer, for the batch normalizations of a new
        encoder: what they normalize with while they are frozen."""
        for _, module in batch_norms(self.model):
            module.reset_running_stats()
            module.momentum = None  # the mean of all that is seen, here of one batch
            module.train()
        self(views)
        for _, module in batch_norms(self.model):
            module.momentum = 0.1
        self.train(self.training)

    def _measure(self) -> tuple[int, int]:
        """Width and grid: from the config where it says them, otherwise from one blank view."""
        patch = getattr(self.config, "patch_size", None)
        patch = patch[0] if isinstance(patch, list | tuple) else patch
        hidden = getattr(self.config, "hidden_size", None)
        if patch and hidden and not self.convolutional:
            return hidden, self.image_size // patch
        with torch.no_grad():
            training = self.model.training
            parameter = next(self.model.parameters())
            if parameter.is_meta:
                raise ValueError(
                    f"vision encoder {self.config.model_type!r}: its grid cannot be known on the meta device"
                )
            blank = torch.zeros(1, 3, self.image_size, self.image_size, dtype=parameter.dtype, device=parameter.device)
            tokens = self.eval()(blank)
            self.train(training)
        grid = round((tokens.shape[1] - 1) ** 0.5)
        return tokens.shape[-1], grid

    def forward(self, views: Tensor) -> Tensor:
        """views: (N, 3, S, S) normalized. Returns (N, 1+P, D): the class token (or the mean of the patches where the
        encoder has none), then the patches row by row."""
        if self.convolutional:
            views = views.contiguous(memory_format=torch.channels_last)
        if self.patchwise:
            output = self.model(**cut_patches(views, self.config.patch_size, self.grid)).last_hidden_state
        elif isinstance(self.model, OpenClipVision):
            output = self.model(views)
        else:
            output = self.model(pixel_values=views, **self.extra).last_hidden_state
        return summary_and_patches(output)


def summary_and_patches(output: Tensor) -> Tensor:
    """What a tower gives, tokens (N, prefix+P, D) or a map (N, D, g, g) -> (N, 1+P, D): the class token, or the mean of
    the patches where there is none, then the patches. Registers are dropped."""
    if output.dim() == 4:  # (N, D, g, g), a convolutional map
        output = output.flatten(2).transpose(1, 2)  # (N, P, D)
    grid = int(output.shape[1] ** 0.5)
    if grid * grid == output.shape[1]:  # no class token
        return torch.cat([output.mean(1, keepdim=True), output], 1)  # (N, 1+P, D)
    prefix = output.shape[1] - grid * grid
    return torch.cat([output[:, :1], output[:, prefix:]], 1)


def cut_patches(views: Tensor, patch: int, grid: int) -> dict[str, Tensor]:
    """What SigLIP 2 takes: (N, 3, S, S) -> patches (N, P, 3*p*p), pixels of a patch in (row, column, channel) order."""
    n = views.shape[0]  # len() would fix it in a graph
    cut = views.reshape(n, 3, grid, patch, grid, patch).permute(0, 2, 4, 3, 5, 1).reshape(n, grid * grid, -1)
    shapes = torch.full((n, 2), grid, device=views.device)
    mask = torch.ones(n, grid * grid, dtype=torch.long, device=views.device)
    return {"pixel_values": cut, "pixel_attention_mask": mask, "spatial_shapes": shapes}


def batch_norms(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The batch normalizations of a model, by name."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, _BatchNorm))


class StandardizedConv2d(nn.Conv2d):
    """A convolution whose filters have mean 0 and variance 1 / (their number of weights) whenever they are applied.

    Group normalization divides by what varies within a picture. Channels behind a ReLU have means far from 0, which
    filters of another mean turn into differences between channels: large ones, and the same in every picture, beside
    which pictures hardly differ. https://arxiv.org/abs/1903.10520
    """

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, C, h, w)."""
        filters = F.layer_norm(self.weight, self.weight.shape[1:], eps=1e-6) * self.weight[0].numel() ** -0.5
        return self._conv_forward(x, filters, self.bias)


def use_group_norm(model: nn.Module) -> None:
    """A group normalization in the place of every batch normalization: groups of GROUP channels, or one of all. Filters
    without a bias, as they have before a normalization, are standardized.

    Statistics are those of one picture. ValueError for a normalization that does more, such as timm's with an
    activation.
    """
    for name, old in list(batch_norms(model)):
        if type(old) is not nn.BatchNorm2d:
            raise ValueError(
                f"model.vision.norm group: {name} is a {type(old).__name__}, which cannot be exchanged; use 'frozen'"
            )
        channels = old.num_features
        groups = 1 if channels % GROUP else channels // GROUP
        exchange(model, name, nn.GroupNorm(groups, channels, eps=old.eps, affine=old.affine))
    for name, old in list(model.named_modules()):
        if type(old) is nn.Conv2d and old.bias is None:
            with torch.device("meta"):  # it takes the old one's weights
                new = StandardizedConv2d(
                    *(old.in_channels, old.out_channels, old.kernel_size, old.stride, old.padding, old.dilation),
                    groups=old.groups,
                    bias=False,
                    padding_mode=old.padding_mode,
                )
            new.weight = old.weight
            exchange(model, name, new)


def exchange(model: nn.Module, name: str, new: nn.Module) -> None:
    where, _, last = name.rpartition(".")
    setattr(model.get_submodule(where), last, new)
