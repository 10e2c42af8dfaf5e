"""Real tokenizers over vocabularies small enough to be written here."""

import tokenizers
import transformers as T
from transformers.convert_slow_tokenizer import bytes_to_unicode

CLIP_VOCAB = 517  # 256 bytes, the same ending a word, three merges, start and end
CLIP_BOS, CLIP_EOS = 515, 516
BERT_WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] a photo of the cat dog ##s on mat red , .".split()

CHAT_WORDS = "<pad> <s> </s> <think> user assistant a red cat on mat".split()
CHAT_TEMPLATE = (
    "{% for m in messages %}<s> {{ m['role'] }} {{ m['content'] }} </s> {% endfor %}"
    "{% if add_generation_prompt %}<s> assistant{% endif %}{% if not enable_thinking %} <think>{% endif %}"
)


def save_clip_tokenizer(folder):
    """A CLIPTokenizer that knows every byte and the merges of `cat`; end-of-text has the largest id, as in CLIP."""
    symbols = list(bytes_to_unicode().values())
    symbols += [s + "</w>" for s in symbols]
    merges = [("c", "a"), ("ca", "t</w>"), ("o", "f</w>")]
    symbols += ["".join(pair) for pair in merges] + ["<|startoftext|>", "<|endoftext|>"]
    vocab = {symbol: i for i, symbol in enumerate(symbols)}
    assert len(vocab) == CLIP_VOCAB
    T.CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77).save_pretrained(folder)
    return folder


def save_bert_tokenizer(folder):
    """An uncased BertTokenizer of seventeen word pieces."""
    T.BertTokenizer(vocab={word: i for i, word in enumerate(BERT_WORDS)}).save_pretrained(folder)
    return folder


def chat_tokenizer(side="right"):
    """A tokenizer of eleven words with a chat template that shows every option; other words are `<pad>`."""
    model = tokenizers.models.WordLevel({word: i for i, word in enumerate(CHAT_WORDS)}, unk_token="<pad>")
    fast = tokenizers.Tokenizer(model)
    fast.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return T.PreTrainedTokenizerFast(tokenizer_object=fast, pad_token="<pad>", chat_template=CHAT_TEMPLATE, padding_side=side)
