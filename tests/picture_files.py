"""Picture files of every awkward kind, made from a real photograph."""

import struct
import zlib
from pathlib import Path

import numpy as np
import skimage
from PIL import Image

from anima_pipe.records import BucketChoice, LatentRequest
from anima_pipe.source import scan_memory
from anima_pipe.source.images import load_pixels, read_image_file

SIZE = (120, 80)
ORIENTATIONS = range(1, 9)
SIDEWAYS = range(5, 9)


def photo():
    """A real photograph of SIZE in RGB, its own copy."""
    with Image.open(Path(skimage.__file__).parent / "data" / "chelsea.png") as picture:
        return picture.convert("RGB").resize(SIZE, Image.Resampling.LANCZOS)


def whole(size):
    """Keep a picture as it is."""
    return BucketChoice(bucket=size, resized=size, crop=(0, 0))


def pixels_of(path, choice=None, **options):
    image = read_image_file(path)
    choice = choice or whole(image.size)
    return load_pixels(LatentRequest(key="", image=image, choice=choice, **options))


def saved(tmp_path, picture, name, **options):
    path = tmp_path / name
    picture.save(path, **options)
    return path


def gray_ramp(top):
    """UInt16[16, 16] from 0 to `top`."""
    return np.linspace(0, top, 256).round().astype(np.uint16).reshape(16, 16)


def png_chunk(kind, content):
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def png_of_16_bits(channels):
    """Bytes of a PNG, UInt16[height, width, 1 to 4]; Pillow writes 16 bits for gray only."""
    height, width, count = channels.shape
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[count]
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in channels)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def lossless(extension):
    return {"lossless": True} if extension == "webp" else {}


def profile_that_sees_green():
    """Bytes of an ICC printer profile in which all ink but none is a strong green."""
    white, green = (255, 128, 128), (160, 60, 190)  # Lab as 8-bit lookup tables store it
    grid = bytes(white) + bytes(green) * 15
    identity = bytes(range(256))
    matrix = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    lookup = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + matrix + identity * 4 + grid + identity * 3
    lookup += bytes(-len(lookup) % 4)
    start = 128 + 4 + 12
    tags = struct.pack(">I4sII", 1, b"A2B0", start, len(lookup))
    header = struct.pack(
        ">I4sI4s4s4s", start + len(lookup), b"test", 0x02400000, b"prtr", b"CMYK", b"Lab "
    )
    header += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + tags + lookup


def decode_requests(folder, count, orientations=(False,)):
    """Requests for `count` pictures of noise, those of one size before those of another."""
    rng = np.random.default_rng(0)
    requests = []
    for index in range(count):
        width, height = ((48, 32), (32, 48))[index % 2]
        path = folder / f"{index:03}.png"
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
        choice = BucketChoice(bucket=(width, height), resized=(width, height), crop=(0, 0))
        image = read_image_file(path)
        requests += [
            LatentRequest(key=f"{index}-{flip}", image=image, choice=choice, flipped=flip)
            for flip in orientations
        ]
    return sorted(requests, key=lambda request: request.choice.bucket, reverse=True)


def forget_inode_dates(patch):
    """Be on a disk that keeps no time of change for inodes."""
    stamp_of = scan_memory.stamp_of
    patch.setattr(scan_memory, "stamp_of", lambda path: stamp_of(path)._replace(inode_changed=0))
