"""Write pictures to files: H.264 video, GIF, PNG.

PyAV's wheels include the encoder, so no other program is needed.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from memory_suite.runners.plotting.canvas import Picture

GIF_COLORS = 128


def write_mp4(pictures: Iterable[Picture], path: Path, fps: float) -> int:
    """Write an H.264 video, with 4:2:0 colors as browsers require; return the number of pictures.

    Args:
        pictures: pictures of the same size, with even width and height.
        path: file to write.
        fps: pictures per second.

    Raises:
        ValueError: there is no picture, or its size is odd.
    """
    import av

    count = 0
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "20", "preset": "veryfast", "tune": "animation"}
        stream.codec_context.thread_count = 1

        def encode(picture: Picture) -> None:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            container.mux(stream.encode(frame))

        with ThreadPoolExecutor(1) as worker:  # one picture is encoded while the next is drawn
            pending: Future[None] | None = None
            for picture in pictures:
                height, width = picture.shape[:2]
                if height % 2 or width % 2:
                    raise ValueError(f"a video's width and height must be even, got {width} x {height}")
                if pending is None:
                    stream.width, stream.height = width, height
                else:
                    pending.result()
                pending = worker.submit(encode, picture)
                count += 1
            if pending is None:
                raise ValueError("a video needs at least one picture")
            pending.result()
        container.mux(stream.encode())
    return count


def write_gif(pictures: Iterable[Picture], path: Path, fps: float, *, factor: int = 2) -> int:
    """Write a repeating GIF, reduced by a whole factor; return the number of pictures."""
    images = []
    for picture in pictures:
        image = Image.fromarray(picture)
        if factor > 1:
            image = image.reduce(factor)
        images.append(image.quantize(GIF_COLORS, dither=Image.Dither.NONE))
    if not images:
        raise ValueError("a GIF needs at least one picture")
    images[0].save(path, save_all=True, append_images=images[1:], duration=round(1000 / fps), loop=0)
    return len(images)


def write_png(picture: Picture, path: Path) -> None:
    """Write one picture."""
    path.write_bytes(png_bytes(picture))


def png_bytes(picture: Picture) -> bytes:
    """Encode a picture as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
