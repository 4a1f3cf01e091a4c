"""Classifying images with what was made: a merged model, or an archive whose tasks are read as they are asked for."""

from .classifier import ENCODER_BYTES, Answer, Classifier, Question, open_classifier
from .encoders import EncoderPool
from .export import export_classifier

__all__ = ["ENCODER_BYTES", "Answer", "Classifier", "EncoderPool", "Question", "export_classifier", "open_classifier"]
