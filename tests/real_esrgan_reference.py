"""A direct, slow Real-ESRGAN degradation in torch: the formulas one after another, no shortcut.

It shares nothing with darkroom but the record of draws (and the noise fields their seeds stand
for). The usual way on a GPU: full two-dimensional kernels padded to 21 by 21, F.interpolate, a
block DCT as a sum over 64 products.
"""

import io
import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

# B = 1; images are (1, 3, H, W) in [0, 1]


def apply(image, draws):
    """Apply one record of draws to float32 (H, W, 3): (lq, gt), likewise."""
    x = torch.from_numpy(image).permute(2, 0, 1)[None]
    height, width = image.shape[:2]
    gt = unsharp_mask(x)
    x = filter2d(gt, draws.kernel1)
    x = interpolate(x, draws.resize1)
    x = noise(x, draws.noise1)
    x = diff_jpeg(x.clamp(0, 1), draws.quality1)
    if draws.kernel2 is not None:
        x = filter2d(x, draws.kernel2)
    x = interpolate(x, draws.resize2)
    x = noise(x, draws.noise2)
    if draws.final_first:
        x = filter2d(interpolate(x, draws.final_resize), draws.final_kernel)
        x = diff_jpeg(x.clamp(0, 1), draws.quality2)
    else:
        x = diff_jpeg(x.clamp(0, 1), draws.quality2)
        x = filter2d(interpolate(x, draws.final_resize), draws.final_kernel)
    x = F.interpolate(x, size=(height, width), mode="bicubic")
    lq = (x * 255).round().clamp(0, 255) / 255
    return tuple(t[0].permute(1, 2, 0).contiguous().numpy() for t in (lq, gt))


def unsharp_mask(x):
    line = torch.exp(-((torch.arange(51.0) - 25) ** 2) / (2 * 8.0**2))
    kernel = torch.outer(line, line)
    kernel /= kernel.sum()
    residual = x - correlate(x, kernel)
    soft = correlate((residual.abs() * 255 > 10).float(), kernel)
    return soft * (x + 0.5 * residual).clamp(0, 1) + (1 - soft) * x


def filter2d(x, kernel):
    padded = torch.zeros(21, 21)
    if kernel is None:
        padded[10, 10] = 1
    else:
        start = (21 - len(kernel)) // 2
        padded[start : start + len(kernel), start : start + len(kernel)] = torch.from_numpy(kernel)
    return correlate(x, padded)


def correlate(x, kernel):
    half = len(kernel) // 2
    weight = kernel.expand(3, 1, *kernel.shape)
    return F.conv2d(F.pad(x, (half,) * 4, mode="reflect"), weight, groups=3)


def interpolate(x, draw):
    return F.interpolate(x, size=draw.size, mode=draw.mode)


def noise(x, draw):
    source = np.random.Generator(np.random.SFC64(draw.seed))
    _, channels, height, width = x.shape
    if draw.grey:
        channels = 1
    if draw.kind == "gaussian":
        field = source.standard_normal((height, width, channels), dtype=np.float32)
        return (x + draw.strength * to_tensor(field)).clamp(0, 1)
    image = x.clamp(0, 1)
    if draw.grey:
        red, green, blue = image.split(1, dim=1)
        image = 0.299 * red + 0.587 * green + 0.114 * blue
    image = (image.double() * 255).round() / 255
    photons = 2 ** math.ceil(math.log2(len(torch.unique(image))))
    rate = (image * photons)[0].permute(1, 2, 0).numpy()
    counts = to_tensor(source.poisson(rate).astype(np.float64))
    return (x + draw.strength * (counts / photons - image)).float().clamp(0, 1)


def to_tensor(array):
    return torch.from_numpy(array).permute(2, 0, 1)[None]


def standard_tables():
    """Read the standard tables from what libjpeg writes at quality 50, where the factor is 1."""
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "JPEG", quality=50)
    tables = Image.open(stream).quantization
    return [torch.tensor(tables[i], dtype=torch.float64).reshape(8, 8) for i in (0, 1)]


def diff_jpeg(x, quality):
    factor = (5000 / quality if quality < 50 else 200 - 2 * quality) / 100
    luma_table, chroma_table = (table * factor for table in standard_tables())
    height, width = x.shape[2:]
    x = F.pad(x, (0, -width % 16, 0, -height % 16)).double() * 255
    red, green, blue = x[0]
    y = 0.299 * red + 0.587 * green + 0.114 * blue
    cb = -0.168736 * red - 0.331264 * green + 0.5 * blue + 128
    cr = 0.5 * red - 0.418688 * green - 0.081312 * blue + 128
    y = code(y, luma_table)
    cb, cr = (
        code(F.avg_pool2d(plane[None, None], 2)[0, 0], chroma_table)
        .repeat_interleave(2, 0)
        .repeat_interleave(2, 1)
        - 128
        for plane in (cb, cr)
    )
    planes = (y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb)
    return (torch.stack(planes)[None].clamp(0, 255) / 255)[..., :height, :width].float()


def code(plane, table):
    """Round the 8 by 8 DCT coefficients of a (H, W) plane of 0..255 to multiples of the table."""
    height, width = plane.shape
    i = torch.arange(8, dtype=torch.float64)
    wave = torch.cos((2 * i[:, None] + 1) * i[None, :] * math.pi / 16)  # sample, frequency
    basis = torch.einsum("xu,yv->xyuv", wave, wave)
    alpha = torch.ones(8, dtype=torch.float64)
    alpha[0] = 1 / math.sqrt(2)
    scale = torch.outer(alpha, alpha)
    blocks = plane.reshape(height // 8, 8, width // 8, 8).permute(0, 2, 1, 3) - 128
    coefficients = 0.25 * scale * torch.tensordot(blocks, basis, dims=2)
    coefficients = (coefficients / table).round() * table
    blocks = 0.25 * torch.tensordot(coefficients * scale, basis.permute(2, 3, 0, 1), dims=2) + 128
    return blocks.permute(0, 2, 1, 3).reshape(height, width)
