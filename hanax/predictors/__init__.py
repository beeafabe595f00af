"""Learn a cost or an accuracy from few measurements, in scikit-learn's convention, with honest intervals."""

from hanax.predictors._additive import AdditivePredictor
from hanax.predictors._card import PredictorCard, make_card
from hanax.predictors._features import ADDITIVE_PRIOR_COLUMNS, additive_features, predictor_features
from hanax.predictors._files import load_predictor, save_predictor
from hanax.predictors._predictor import Predictor
from hanax.predictors._ridge import RidgePredictor

__all__ = [
    "ADDITIVE_PRIOR_COLUMNS",
    "AdditivePredictor",
    "Predictor",
    "PredictorCard",
    "RidgePredictor",
    "additive_features",
    "load_predictor",
    "make_card",
    "predictor_features",
    "save_predictor",
]
