"""Learn a cost or an accuracy from few measurements, in scikit-learn's convention, with honest intervals."""

from hanax.predictors._accuracy import AccuracyPredictor
from hanax.predictors._accuracy_features import accuracy_feature_groups, accuracy_features
from hanax.predictors._additive import AdditivePredictor
from hanax.predictors._best_source import BestSourcePredictor
from hanax.predictors._card import PredictorCard, compare_with_measured, make_card
from hanax.predictors._choose_archs import choose_archs
from hanax.predictors._features import ADDITIVE_PRIOR_COLUMNS, additive_features, predictor_features
from hanax.predictors._files import PoolMismatchError, load_predictor, save_predictor
from hanax.predictors._help import HelpPredictor
from hanax.predictors._hierarchical_bayes import HierarchicalBayesPredictor
from hanax.predictors._latency_features import latency_feature_groups, latency_features
from hanax.predictors._operation_wise import OperationWisePredictor
from hanax.predictors._predictor import Predictor
from hanax.predictors._principal_components import PrincipalComponentsPredictor
from hanax.predictors._quantized_accuracy import (
    QuantizedAccuracyPredictor,
    quantized_feature_groups,
    quantized_features,
)
from hanax.predictors._ridge import RidgePredictor
from hanax.predictors._source_pool import SourcePool
from hanax.predictors._transfer import TransferPredictor

__all__ = [
    "ADDITIVE_PRIOR_COLUMNS",
    "AccuracyPredictor",
    "AdditivePredictor",
    "BestSourcePredictor",
    "HelpPredictor",
    "HierarchicalBayesPredictor",
    "OperationWisePredictor",
    "PoolMismatchError",
    "Predictor",
    "PredictorCard",
    "PrincipalComponentsPredictor",
    "QuantizedAccuracyPredictor",
    "RidgePredictor",
    "SourcePool",
    "TransferPredictor",
    "accuracy_feature_groups",
    "accuracy_features",
    "additive_features",
    "choose_archs",
    "compare_with_measured",
    "latency_feature_groups",
    "latency_features",
    "load_predictor",
    "make_card",
    "predictor_features",
    "quantized_feature_groups",
    "quantized_features",
    "save_predictor",
]
