"""Writes a Llama of toy size with invented words; the weights come from `--load-format dummy`."""

import json, os, sys
out = sys.argv[1]
os.makedirs(out)
words = ["<unk>", "<s>", "</s>"] + [f"w{n}" for n in range(3, 2048)]
tokenizer = {"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"},
             "model": {"type": "WordLevel", "vocab": {w: n for n, w in enumerate(words)}, "unk_token": "<unk>"}}
config = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
model = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
         "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32,
         "vocab_size": 2048, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
         "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False, "torch_dtype": "bfloat16"}
for name, value in [("tokenizer.json", tokenizer), ("tokenizer_config.json", config), ("config.json", model)]:
    json.dump(value, open(os.path.join(out, name), "w"))
