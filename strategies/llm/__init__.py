"""The language model as a Strategy: a local model on Ollama, tuned on the policy's decisions.

`config` says what is asked, where and how long; `server` what a server is, `ollama_chat` is one (and the only
module that imports the client); `asking` holds the life of a close: is it the right model, is it loaded, who is
asked first, until when; `odds` reads probabilities off the tokens; `model` is the Strategy. A daemon that decides
without a language model imports none of this.
"""

from strategies.llm.config import LanguageModelConfig, LanguageModelError
from strategies.llm.model import LanguageModel, LanguageModelStatus

__all__ = ["LanguageModel", "LanguageModelConfig", "LanguageModelError", "LanguageModelStatus"]
