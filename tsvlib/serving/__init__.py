"""Classifying images with what was made: a merged model, or an archive whose tasks are read as they are asked for."""

from .classifier import Answer, Classifier, Question, open_classifier
from .encoders import EncoderPool
from .export import export_classifier

__all__ = ["Answer", "Classifier", "EncoderPool", "Question", "export_classifier", "open_classifier"]
