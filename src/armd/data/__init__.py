"""Text to tokens to training windows."""

from armd.data.dataset import Spread, Texts, TokenDataset
from armd.data.prepare import Manifest, prepare
from armd.data.sources import NAMED, Document, documents, named_documents, python_documents
from armd.data.tokenizers import Tokenizer, get_tokenizer

__all__ = [
    "NAMED",
    "Document",
    "Manifest",
    "Spread",
    "Texts",
    "TokenDataset",
    "Tokenizer",
    "documents",
    "get_tokenizer",
    "named_documents",
    "prepare",
    "python_documents",
]
