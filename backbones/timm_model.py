"""Any model of the package timm as a backbone, with its own normalisation and its own weights.

timm is optional. What this project writes by hand (TResNet, ResNet-101, EfficientNet-Lite) does not
go through it.
"""

import torch
from torch import nn

from runtime.reading import described
from runtime.terminal import printable, tell


def create(name: str, pretrained: bool = False) -> nn.Module:
    """timm's model without its classifier; if timm cannot make it, a ValueError says why."""
    try:
        import timm
    except ImportError as error:
        raise ValueError(f"--backbone timm:{name} needs timm ({error}); pip install timm") from None
    except Exception as error:  # such as RuntimeError, if torchvision is for another torch
        raise ValueError(
            f"timm is installed, but its import fails ({described(error)}); install versions of "
            "timm, torchvision and torch that fit each other"
        ) from error
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=0)
    except Exception as error:  # of many kinds, also from its hub
        advice = "timm.list_models() has the names; or pass --weights FILE, or none"
        raise ValueError(
            f"timm cannot make {printable(name)} ({described(error)}); {advice}"
        ) from error


class TimmBackbone(nn.Module):
    """images (B, 3, H, W) in [0, 1] -> features (B, D), D = `num_features`, by timm's own pooling.

    H and W are what the model takes; others are a ValueError.
    """

    def __init__(self, name: str, pool: str = "avg"):
        super().__init__()
        if pool != "avg":
            raise ValueError(f"timm's models have their own pooling; leave out --pool {pool}")
        self.name, self.net = name, create(name)
        config = self.net.pretrained_cfg
        names = config.get("classifier") or "head"  # a distilled model has two
        self.classifier = tuple(f"{n}." for n in ([names] if isinstance(names, str) else names))
        self.num_features = getattr(self.net, "head_hidden_size", None) or self.net.num_features
        for key in ("mean", "std"):
            self.register_buffer(key, torch.tensor(config[key]).view(3, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        try:
            return self.net((images - self.mean) / self.std)  # (B, D)
        except AssertionError as error:  # timm's, about a size
            raise ValueError(f"timm's {self.name}: {error}; pass that --image-size") from None

    @staticmethod
    def own_entry(name: str, tensor: torch.Tensor) -> tuple[str, torch.Tensor]:
        """An entry of timm's file, or of a checkpoint of ours."""
        return "net." + name.removeprefix("net."), tensor


def load_pretrained(backbone: TimmBackbone) -> dict:
    """The weights timm has for the model, from its hub or its cache."""
    backbone.net.load_state_dict(create(backbone.name, pretrained=True).state_dict())
    tell(f"timm:{backbone.name}: loaded timm's pretrained weights")
    return {}
