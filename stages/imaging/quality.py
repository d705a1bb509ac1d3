"""Numbers on one picture that say whether it is worth training on.

Pictures are RGB uint8 [height, width, 3].
"""

from __future__ import annotations

import cv2

from stages.imaging.metrics import Picture


def blur(pixels: Picture) -> float:
    """Return the variance of the Laplacian of the picture in grey 0-255; low is blurred.

    J. L. Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy", ICPR 2000. The
    Laplacian is the 4-neighbour one.
    """
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    return float(cv2.Laplacian(grey, cv2.CV_64F).var())
