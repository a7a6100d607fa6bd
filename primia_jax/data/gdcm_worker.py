"""The process that decodes with GDCM, since damaged files make GDCM abort its process.

It is started by `gdcm_process` as a plain script, and imports nothing of this package. Requests
come through standard input: the length of a JSON text, the text, and the frame of "bytes" bytes.
The answer on standard output is a length and so many bytes of pixels; 0 for a frame without pixels.
"""

import json
import struct
import sys
from typing import Any, BinaryIO

import gdcm


def decode(frame: bytes, request: dict[str, Any]) -> bytes:
    """The samples of one frame, pixel by pixel; empty if GDCM cannot decode it."""
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(frame)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((request["width"], request["height"], 1))
    image.SetDataElement(element)
    kind = gdcm.PhotometricInterpretation.GetPIType(request["photometric"])
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(kind))
    if request["samples"] > 1:
        image.SetPlanarConfiguration(request["planar"])
    kind = gdcm.TransferSyntax.GetTSType(request["syntax"])
    image.SetTransferSyntax(gdcm.TransferSyntax(kind))
    bits = request["bits"]
    cell = gdcm.PixelFormat(request["samples"], request["cell"], bits, bits - 1, request["signed"])
    image.SetPixelFormat(cell)
    text = image.GetBuffer()
    return b"" if text is None else text.encode("utf-8", "surrogateescape")


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answers until the requests end."""
    while head := requests.read(8):
        request = json.loads(requests.read(struct.unpack("<Q", head)[0]))
        pixels = decode(requests.read(request["bytes"]), request)
        answers.write(struct.pack("<Q", len(pixels)))
        answers.write(pixels)
        answers.flush()


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer)
