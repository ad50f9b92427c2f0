"""Mel-frequency cepstral coefficients of speech: stored as `log_mel` stores them, read instead of the log-mel."""

from training.featurizers.base import FeatureShape
from training.featurizers.log_mel import LogMelFeaturizer


class MfccFeaturizer(LogMelFeaturizer):
    read = "mfcc"

    def shape(self) -> FeatureShape:
        return FeatureShape(self.form, self.options.coefficients)
