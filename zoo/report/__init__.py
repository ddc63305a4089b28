"""Figures and the page of a fit, from whatever a model offers.

`pictures(subject)` and `metrics(subject)` look for the methods that a model has; a new model needs
no code here as long as it has some of `sample`, `reconstruct`, `encode`, `decode`, `log_prob`.
`include_diagnosis` and `include_comparison` put on the page what `diagnose` and `compare` found.
"""

from .comparison import include_comparison
from .diagnosis import include_diagnosis
from .draw import Picture
from .gallery import PICTURES, pictures
from .images import image_grid
from .numbers import Metric, as_json, metrics
from .page import Report, require_page, write
from .posterior import labelled
from .subject import Subject

__all__ = [
    "PICTURES",
    "Metric",
    "Picture",
    "Report",
    "Subject",
    "as_json",
    "image_grid",
    "include_comparison",
    "include_diagnosis",
    "labelled",
    "metrics",
    "pictures",
    "require_page",
    "write",
]
