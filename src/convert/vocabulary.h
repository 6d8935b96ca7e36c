#ifndef MX_CONVERT_VOCABULARY_H
#define MX_CONVERT_VOCABULARY_H

/* The split pattern of o200k, as tokenizer.json of gpt-oss has it; llama.cpp calls it "gpt-4o". */
extern const char mx_o200k_pattern[];

#endif
