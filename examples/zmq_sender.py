"""Sends frames to `n2sr stream zmq://127.0.0.1:9999` from any Python that has NumPy and pyzmq.

Copy it into the Python of your microscope's software (DigitalMicrograph, AutoScript, PyJEM,
SerialEM) and replace `acquired_frames` by a loop over what that acquires; see docs/live/zeromq.md.
"""

import json
import time

import numpy as np
import zmq


def acquired_frames():
    """Replace this: give one (H, W) array after another."""
    rng = np.random.default_rng(0)
    for _ in range(100):
        yield rng.poisson(20, (512, 512)).astype(np.uint16)
        time.sleep(0.04)


def main(address="tcp://127.0.0.1:9999", pixel_size_nm=0.02):
    """Send all frames; wait while n2sr is not there or has no room."""
    socket = zmq.Context.instance().socket(zmq.PUSH)
    socket.sndhwm = 2
    socket.bind(address)
    for index, frame in enumerate(acquired_frames()):
        header = {
            "htype": "dimage_d-1.0",
            "shape": [frame.shape[1], frame.shape[0]],
            "type": frame.dtype.name,
            "encoding": "<",
            "frame": index,
            "source_time_s": time.time(),
            "pixel_size": [pixel_size_nm, pixel_size_nm],
            "unit": "nm",
        }
        socket.send_multipart([json.dumps(header).encode(), np.ascontiguousarray(frame)])


if __name__ == "__main__":
    main()
