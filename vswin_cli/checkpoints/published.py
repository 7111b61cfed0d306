"""Every published Swin checkpoint that vswin reads (FACTS 2), as one table. Standard library only.

Short names are ``swin-SIZE[-PIXELS]-DATA[-22k][-2d][-LIBRARY]``: no library for the official video files and
Microsoft's image files. Accuracies are as published; none was measured again here. None means that no
number is published for that file, or that none is known to us.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Published:
    """One published checkpoint. Exactly one of ``url``, ``hub`` and ``built_in`` says where its file is.

    hub:      repository on the Hugging Face hub; its checkpoint file is found by its name
    built_in: a file in the package's data/
    sha256:   what is published of it: its first 8 digits or all 64; '' where nothing is
    protocol: name in PROTOCOLS that Top-1 and Top-5 (percent) were measured by; None for images or if unknown
    """

    name: str
    dialect: str
    data: str
    classes: int | None
    licence: str
    url: str | None = None
    hub: str | None = None
    built_in: str | None = None
    sha256: str = ""
    protocol: str | None = None
    top1: float | None = None
    top5: float | None = None
    note: str = ""

    @property
    def file(self) -> str | None:
        """Name of the file; None for a repository on the hub."""
        return self.url.rpartition("/")[2] if self.url else self.built_in

    @property
    def address(self) -> str:
        """Where it comes from, in one word."""
        return self.url or (f"hf:{self.hub}" if self.hub else f"built in ({self.built_in})")

    def to_json(self) -> dict[str, Any]:
        """A dictionary of plain JSON types."""
        return asdict(self)


#: What predict and eval take where nothing is named.
DEFAULT = "swin-t-k400"

K400, K600, K700, K710 = "Kinetics-400", "Kinetics-600", "Kinetics-700", "Kinetics-710"
SSV2, IN1K, IN22K = "Something-Something v2", "ImageNet-1k", "ImageNet-22k"
CLASSES = {K400: 400, K600: 600, K700: 700, K710: 710, SSV2: 174, IN1K: 1000, IN22K: 21_841}

_STORAGE = "https://github.com/SwinTransformer/storage/releases/download"
_MMACTION = "https://download.openmmlab.com/mmaction/v1.0/recognition/swin"
_TORCHVISION = "https://download.pytorch.org/models"
_OMNIVORE = "https://dl.fbaipublicfiles.com/omnivore/models"
_NOT_COMMERCIAL = "CC-BY-NC-4.0: not for commercial use"
_FROM_22K = "pretrained on ImageNet-22k"

Accuracy = tuple[float | None, float | None]
_UNKNOWN: Accuracy = (None, None)


def _official() -> Iterator[Published]:
    """FACTS 2.1: the repository's model zoo. The code is Apache-2.0, the storage repository MIT."""
    rows: list[tuple[str, str, str, str, Accuracy, str]] = [
        ("t-k400", "tiny_patch244_window877_kinetics400_1k", K400, "k400-4x3", (78.8, 93.6), ""),
        ("s-k400", "small_patch244_window877_kinetics400_1k", K400, "k400-4x3", (80.6, 94.5), ""),
        ("b-k400", "base_patch244_window877_kinetics400_1k", K400, "k400-4x3", (80.6, 94.6), ""),
        ("b-k400-22k", "base_patch244_window877_kinetics400_22k", K400, "k400-4x3", (82.7, 95.5), _FROM_22K),
        ("b-k600-22k", "base_patch244_window877_kinetics600_22k", K600, "k400-4x3", (84.0, 96.5), _FROM_22K),
        ("b-ssv2", "base_patch244_window1677_sthv2", SSV2, "ssv2-1x3", (69.6, 92.7), ""),
        (
            "b-k400-22k-w16",
            "base_patch244_window1677_kinetics400_22k",
            K400,
            "k400-4x3",
            _UNKNOWN,
            "window 16x7x7, where training on Something-Something v2 started",
        ),
    ]
    for name, file, data, protocol, (top1, top5), note in rows:
        yield Published(
            f"swin-{name}",
            "official-3d",
            data,
            CLASSES[data],
            "Apache-2.0 (code), MIT (files)",
            url=f"{_STORAGE}/v1.0.4/swin_{file}.pth",
            protocol=protocol,
            top1=top1,
            top5=top5,
            note=note,
        )


def _mmaction2() -> Iterator[Published]:
    """FACTS 2.2: configs/recognition/swin of mmaction2 1.x. A file's name ends in 8 digits of its SHA-256."""
    amp = "8xb8-amp-32x2x1-30e_kinetics400-rgb"
    rows: list[tuple[str, str, str, str, Accuracy]] = [
        ("t-k400", f"tiny-p244-w877_in1k-pre_{amp}", "20220930-241016b2", K400, (78.90, 93.77)),
        ("s-k400", f"small-p244-w877_in1k-pre_{amp}", "20220930-e91ab986", K400, (80.54, 94.46)),
        ("b-k400", f"base-p244-w877_in1k-pre_{amp}", "20220930-182ec6cc", K400, (80.57, 94.49)),
        ("l-k400", f"large-p244-w877_in22k-pre_{amp}", "20220930-78ad8b11", K400, (83.46, 95.91)),
        (
            "l-k700",
            "large-p244-w877_in22k-pre_16xb8-amp-32x2x1-30e_kinetics700-rgb",
            "20220930-f8d74db7",
            K700,
            (75.92, 92.72),
        ),
        (
            "s-k710",
            "small-p244-w877_in1k-pre_32xb4-amp-32x2x1-30e_kinetics710-rgb",
            "20230612-8e082ff1",
            K710,
            (76.90, 92.96),
        ),
    ]
    for name, folder, stamp, data, (top1, top5) in rows:
        yield Published(
            f"swin-{name}-mmaction2",
            "mmaction2-3d",
            data,
            CLASSES[data],
            "Apache-2.0",
            url=f"{_MMACTION}/swin-{folder}/swin-{folder}_{stamp}.pth",
            sha256=_digits(stamp),
            protocol="mmaction2-4x3",
            top1=top1,
            top5=top5,
            note=_FROM_22K if name[0] == "l" else "",
        )


def _torchvision() -> Iterator[Published]:
    """FACTS 2.3 and 2.4: weights enums of torchvision. A file's name ends in 8 digits of its SHA-256."""
    tiny = "7615ae035996b65eb38dad437ae533d2dfcd36f9f89d28c0f0fa7bfb8e6b3130"
    rows: list[tuple[str, str, Accuracy, str]] = [
        ("t-k400", "swin3d_t-7615ae03", (77.715, 93.519), tiny),
        ("s-k400", "swin3d_s-da41c237", (79.521, 94.158), ""),
        ("b-k400", "swin3d_b_1k-24f7c7c6", (79.427, 94.386), ""),
        ("b-k400-22k", "swin3d_b_22k-7c6ae6fa", (81.643, 95.574), ""),
        ("t-1k-2d", "swin_t-704ceda3", (81.474, None), ""),
        ("s-1k-2d", "swin_s-5e29d889", (83.196, None), ""),
        ("b-1k-2d", "swin_b-68c6b09e", (83.582, None), ""),
    ]
    for name, file, (top1, top5), whole in rows:
        image = name.endswith("2d")
        data = IN1K if image else K400
        yield Published(
            f"swin-{name}-torchvision",
            "torchvision-2d" if image else "torchvision-3d",
            data,
            CLASSES[data],
            "BSD-3-Clause",
            url=f"{_TORCHVISION}/{file}.pth",
            sha256=whole or _digits(file),
            protocol=None if image else "torchvision-12x1",
            top1=top1,
            top5=top5,
            note=_FROM_22K if "22k" in name else "",
        )


def _microsoft() -> Iterator[Published]:
    """FACTS 2.4: MODELHUB.md of microsoft/Swin-Transformer; Top-1 and Top-5 on ImageNet-1k."""
    ft = "pretrained on ImageNet-22k, finetuned on ImageNet-1k"
    rows: list[tuple[str, str, Accuracy, str]] = [
        ("t-1k", "v1.0.0/swin_tiny_patch4_window7_224", (81.2, 95.5), ""),
        ("s-1k", "v1.0.0/swin_small_patch4_window7_224", (83.2, 96.2), ""),
        ("b-1k", "v1.0.0/swin_base_patch4_window7_224", (83.5, 96.5), ""),
        ("b-384-1k", "v1.0.0/swin_base_patch4_window12_384", (84.5, 97.0), ""),
        ("t-22k", "v1.0.8/swin_tiny_patch4_window7_224_22k", _UNKNOWN, ""),
        ("s-22k", "v1.0.8/swin_small_patch4_window7_224_22k", _UNKNOWN, ""),
        ("b-22k", "v1.0.0/swin_base_patch4_window7_224_22k", _UNKNOWN, ""),
        ("b-384-22k", "v1.0.0/swin_base_patch4_window12_384_22k", _UNKNOWN, ""),
        ("l-22k", "v1.0.0/swin_large_patch4_window7_224_22k", _UNKNOWN, ""),
        ("l-384-22k", "v1.0.0/swin_large_patch4_window12_384_22k", _UNKNOWN, ""),
        ("t-1k-22k", "v1.0.8/swin_tiny_patch4_window7_224_22kto1k_finetune", (80.9, 96.0), ft),
        ("s-1k-22k", "v1.0.8/swin_small_patch4_window7_224_22kto1k_finetune", (83.2, 97.0), ft),
        ("b-1k-22k", "v1.0.0/swin_base_patch4_window7_224_22kto1k", (85.2, 97.5), ft),
        ("b-384-1k-22k", "v1.0.0/swin_base_patch4_window12_384_22kto1k", (86.4, 98.0), ft),
        ("l-1k-22k", "v1.0.0/swin_large_patch4_window7_224_22kto1k", (86.3, 97.9), ft),
        ("l-384-1k-22k", "v1.0.0/swin_large_patch4_window12_384_22kto1k", (87.3, 98.2), ft),
        ("t-c24-256-1k", "v1.0.5/swin_tiny_c24_patch4_window8_256", (81.6, None), "24 channels per head"),
        ("t-moby", "v1.0.3/moby_swin_t_300ep_pretrained", _UNKNOWN, "MoBY: self-supervised, no classifier"),
    ]
    for name, file, (top1, top5), note in rows:
        data = IN22K if name.endswith("-22k") and "1k" not in name else IN1K
        yield Published(
            f"swin-{name}-2d",
            "microsoft-2d",
            data,
            0 if name == "t-moby" else CLASSES[data],
            "MIT",
            url=f"{_STORAGE}/{file}.pth",
            top1=top1,
            top5=top5,
            note=note,
        )


def _timm() -> Iterator[Published]:
    """FACTS 2.4: repositories of timm on the hub; weights are Microsoft's in timm's layout."""
    sizes = {"t": "tiny", "s": "small", "b": "base", "l": "large"}
    tags = {"1k": "ms_in1k", "22k": "ms_in22k", "1k-22k": "ms_in22k_ft_in1k"}
    every, from_22k = tuple(tags), ("22k", "1k-22k")
    rows: list[tuple[str, str, tuple[str, ...]]] = [
        ("t", "swin_tiny_patch4_window7_224", every),
        ("s", "swin_small_patch4_window7_224", every),
        ("b", "swin_base_patch4_window7_224", every),
        ("b-384", "swin_base_patch4_window12_384", every),
        ("l", "swin_large_patch4_window7_224", from_22k),
        ("l-384", "swin_large_patch4_window12_384", from_22k),
        *((f"s3-{s}", f"swin_s3_{sizes[s]}_224", ("1k",)) for s in "tsb"),
    ]
    for name, model, kinds in rows:
        for kind in kinds:
            data = IN22K if kind == "22k" else IN1K
            yield Published(
                f"swin-{name}-{kind}-2d-timm",
                "timm-2d",
                data,
                CLASSES[data],
                "MIT",
                hub=f"timm/{model}.{tags[kind]}",
                note=_FROM_22K if kind == "1k-22k" else "",
            )


def _huggingface() -> Iterator[Published]:
    """FACTS 2.4: repositories of Microsoft on the hub, in the layout of transformers."""
    rows = [
        ("t", "tiny-patch4-window7-224", IN1K),
        ("s", "small-patch4-window7-224", IN1K),
        ("b", "base-patch4-window7-224", IN1K),
        ("l", "large-patch4-window7-224", IN1K),
        ("b-384", "base-patch4-window12-384", IN1K),
        ("l-384", "large-patch4-window12-384", IN1K),
        ("b", "base-patch4-window7-224-in22k", IN22K),
        ("l", "large-patch4-window7-224-in22k", IN22K),
        ("b-384", "base-patch4-window12-384-in22k", IN22K),
        ("l-384", "large-patch4-window12-384-in22k", IN22K),
    ]
    for name, model, data in rows:
        yield Published(
            f"swin-{name}-{'22k' if data == IN22K else '1k'}-2d-huggingface",
            "huggingface-2d",
            data,
            CLASSES[data],
            "Apache-2.0",
            hub=f"microsoft/swin-{model}",
        )


def _omnivore() -> Iterator[Published]:
    """FACTS 2.5. Published without a Top-5, and with views that are not known to us."""
    rows: list[tuple[str, str, float | None]] = [
        ("t", "swinT", 78.9),
        ("s", "swinS", 82.2),
        ("b", "swinB", 83.3),
        ("b-22k", "swinB_In21k", 84.0),
        ("l-22k", "swinL_In21k", 84.1),
        ("b-epic", "swinB_epic", None),
    ]
    for name, file, top1 in rows:
        epic = name == "b-epic"
        yield Published(
            f"swin-{name}-omnivore",
            "omnivore",
            "EPIC-Kitchens-100" if epic else K400,
            None if epic else CLASSES[K400],
            "CC-BY-NC-4.0",
            url=f"{_OMNIVORE}/{file}_checkpoint.torch",
            top1=top1,
            note=_NOT_COMMERCIAL,
        )


def _digits(stem: str) -> str:
    """The 8 digits of its SHA-256 that a file's name ends in."""
    found = re.search(r"-([0-9a-f]{8})$", stem)
    assert found is not None
    return found[1]


CAMERA_MOTION = Published(
    "camera-motion",
    "native",
    "camera motion",
    9,
    "Apache-2.0",
    built_in="camera_motion.safetensors",
    note="ships with vswin: which way the camera moves",
)

#: Short name -> checkpoint.
PUBLISHED: dict[str, Published] = {
    entry.name: entry
    for family in (
        (CAMERA_MOTION,),
        _official(),
        _mmaction2(),
        _torchvision(),
        _omnivore(),
        _microsoft(),
        _timm(),
        _huggingface(),
    )
    for entry in family
}
