"""The pairs that an estimator cannot treat: the words of its refusal."""

from inference import elbo
from inference.testing.toys import GlobalLocal, Nested, Switch, SwitchedGaussian

DISCRETE, GLOBAL = (Switch, SwitchedGaussian), (GlobalLocal, Nested)


def refusal(estimator, kind):
    """A pattern of the error that `estimator` raises on toys of a class, or None."""
    if isinstance(estimator, elbo.MMD | elbo.TotalCorrelation):
        if kind in DISCRETE:
            return "discrete or not reparameterised"
        return "expected every latent in one data plate" if kind in GLOBAL else None
    if isinstance(estimator, elbo.DReG) and kind in DISCRETE:
        return r"not reparameterised\. Use VIMCO"
    if isinstance(estimator, elbo.Taylor):
        if kind in GLOBAL:
            return "depends on another's draw"
        return "expected independent normals" if kind in DISCRETE else None
    if isinstance(estimator, elbo.Sobol) and kind in DISCRETE:
        return "needs independent draws"
    if getattr(estimator, "sleep", 0):
        return {GlobalLocal: "is one for all data at once", Nested: "cannot dream it"}.get(kind)
    return None
