"""What an image encoder needs: size, crop, resampling filter, mean and deviation."""

from typing import Any, NamedTuple

from pydantic import Field, ValidationError

from furnace_hpc.config.preprocessing.files import (
    IMAGE_PROCESSOR,
    PREPROCESSOR,
    PROCESSOR,
    Needs,
    bad_file,
    file_hashes,
    preprocessor_settings,
    read_json,
)
from furnace_hpc.config.pretrained_files import CONFIG

FILES = (PREPROCESSOR, PROCESSOR)
FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
_HALF = (0.5, 0.5, 0.5)
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
CROP_BELOW = 384  # ConvNeXt: smaller images are cropped


class _Defaults(NamedTuple):
    """Settings of a class of transformers, which its files may leave out."""

    filter: int
    size: dict[str, int]
    mean_std: tuple[tuple[float, ...], tuple[float, ...]] = (_HALF, _HALF)
    crop: int | None = None
    is_square: bool = True
    """Whether a size of one number means a square, not the shorter side."""


_CLASSES = {
    "ViT": _Defaults(2, {"height": 224, "width": 224}),
    "DeiT": _Defaults(3, {"height": 256, "width": 256}, crop=224),
    "CLIP": _Defaults(3, {"shortest_edge": 224}, _CLIP, crop=224, is_square=False),
    "Bit": _Defaults(3, {"shortest_edge": 224}, _CLIP, crop=224, is_square=False),
    "Siglip": _Defaults(3, {"height": 224, "width": 224}),
    "ConvNext": _Defaults(3, {"shortest_edge": 384}, is_square=False),
    "DINOv3ViT": _Defaults(2, {"height": 224, "width": 224}, _IMAGENET),
}
# model_type -> class, for files without a class
_OF_MODEL = {
    **dict.fromkeys(("vit", "vit_mae", "vit_msn", "swin", "swinv2", "ijepa"), "ViT"),
    "deit": "DeiT",
    **dict.fromkeys(("clip", "clip_vision_model"), "CLIP"),
    **dict.fromkeys(("siglip", "siglip_vision_model"), "Siglip"),
    **dict.fromkeys(("dinov2", "dinov2_with_registers", "bit"), "Bit"),
    **dict.fromkeys(("convnext", "convnextv2", "resnet", "regnet"), "ConvNext"),
    **dict.fromkeys(("dinov3_vit", "dinov3_convnext"), "DINOv3ViT"),
}


class ImageNeeds(Needs):
    """The pixels of an image encoder."""

    height: int = Field(ge=1, le=4096, description="of the stored image, in pixels")
    width: int = Field(ge=1, le=4096)
    shorter_side: int | None = Field(
        default=None, ge=1, le=8192, description="length after resizing. None: to resize_to"
    )
    resize_to: tuple[int, int] | None = Field(
        default=None, description="height and width after resizing, before the middle is cropped"
    )
    filter: str = Field(description="Pillow's resampling filter")
    mean: tuple[float, ...] = Field(description="of the channels, after rescaling")
    std: tuple[float, ...]
    rescale: float = Field(gt=0, description="factor of the stored bytes before mean and std")

    @property
    def stored_mean_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation in units of the stored bytes."""
        mean, std = ([value / self.rescale for value in values] for values in (self.mean, self.std))
        return tuple(mean), tuple(std)

    def describe(self) -> str:
        """Return the settings in a few words."""
        resized = f"the shorter side resized to {self.shorter_side}"
        if self.resize_to:
            resized = f"resized to {self.resize_to[0]} x {self.resize_to[1]}"
        mean, std = (
            "[" + ", ".join(f"{value:.4g}" for value in values) + "]"
            for values in (self.mean, self.std)
        )
        return (
            f"images of {self.height} x {self.width} pixels ({resized}, {self.filter}), mean "
            f"{mean}, deviation {std}"
        )


def image_needs(name: str) -> ImageNeeds | None:
    """Return what an image encoder needs. None if the folder has no image processor.

    Raises:
        ConfigError: a file cannot be read, or the image processor is of an unknown kind.
    """
    given = preprocessor_settings(name, IMAGE_PROCESSOR)
    if given is None or not _is_of_images(given):
        return None
    kind = _kind(name, given)
    found = {key: value for key, value in given.items() if value is not None}
    try:
        return ImageNeeds(**_settings(name, kind, found))
    except (ValidationError, TypeError, ValueError, KeyError) as error:
        why = str(error).splitlines()[0]
        raise bad_file(
            name, f"its image processor has odd settings ({why})", "Fetch it again"
        ) from None


def image_files(name: str) -> dict[str, str]:
    """Return file -> SHA-256 of the files with the settings."""
    return file_hashes(name, FILES)


def _is_of_images(given: dict[str, Any]) -> bool:
    return "sampling_rate" not in given and bool(given.keys() & {"size", "image_mean", "do_resize"})


def _kind(name: str, given: dict[str, Any]) -> str:
    named = str(given.get("image_processor_type") or given.get("feature_extractor_type") or "")
    kind = named.removesuffix("Pil").removesuffix("Fast")
    kind = kind.removesuffix("ImageProcessor").removesuffix("FeatureExtractor")
    if not named:
        model = str((read_json(name, CONFIG) or {}).get("model_type", ""))
        kind = _OF_MODEL.get(model, "")
    if kind not in _CLASSES:
        raise bad_file(
            name,
            f"its image processor {named or 'without a name'} is not supported",
            f"Choose an encoder with the ImageProcessor of {', '.join(_CLASSES)}",
        )
    return kind


def _settings(name: str, kind: str, given: dict[str, Any]) -> dict[str, Any]:
    defaults = _CLASSES[kind]
    if given.get("do_resize") is False or given.get("do_pad"):
        raise bad_file(
            name, "its image processor does not give all images one size", "Set do_resize: true"
        )
    size = _size(given.get("size", defaults.size), defaults.is_square)
    settings = _resizing(name, kind, size, given)
    crops = given.get("do_center_crop", defaults.crop is not None)
    if crops:
        crop = _size(given.get("crop_size", defaults.crop or 224), is_square=True)
        settings |= {"height": crop["height"], "width": crop["width"]}
    if "height" not in settings:
        raise bad_file(
            name,
            "its image processor keeps the aspect ratio, so images differ in size",
            "Set do_center_crop: true and a crop_size in its settings",
        )
    rescale = float(given.get("rescale_factor", 1 / 255))
    if given.get("do_rescale") is False:
        rescale = 1.0
    mean, std = _three(0.0), _three(1.0)
    if given.get("do_normalize", True):
        mean = _three(given.get("image_mean", defaults.mean_std[0]))
        std = _three(given.get("image_std", defaults.mean_std[1]))
    number = int(given.get("resample", defaults.filter))
    return settings | {
        "filter": FILTERS[number],
        "mean": mean,
        "std": std,
        "rescale": rescale,
    }


def _resizing(name: str, kind: str, size: dict[str, int], given: dict[str, Any]) -> dict[str, Any]:
    """Return how an image is resized, and its final size if that is already known."""
    if kind == "ConvNext":
        side = size["shortest_edge"]
        final = {"height": side, "width": side}
        if side >= CROP_BELOW:
            return final | {"resize_to": (side, side)}
        return final | {"shorter_side": int(side / float(given.get("crop_pct", 224 / 256)))}
    if size.keys() >= {"height", "width"}:
        final = {"height": size["height"], "width": size["width"]}
        return final | {"resize_to": (size["height"], size["width"])}
    if size.keys() == {"shortest_edge"}:
        return {"shorter_side": size["shortest_edge"]}
    raise bad_file(
        name,
        f"its image processor has the size {size}",
        "Write height and width, or shortest_edge with crop_size",
    )


def _size(given: Any, is_square: bool) -> dict[str, int]:
    if isinstance(given, int):
        if is_square:
            return {"height": given, "width": given}
        return {"shortest_edge": given}
    if isinstance(given, list | tuple):
        return {"height": int(given[0]), "width": int(given[1])}
    return {key: int(value) for key, value in given.items() if value is not None}


def _three(given: Any) -> tuple[float, ...]:
    if isinstance(given, int | float):
        return (float(given),) * 3
    values = tuple(float(value) for value in given)
    if len(values) != 3:
        raise ValueError(f"{len(values)} channels, wanted 3")
    return values
