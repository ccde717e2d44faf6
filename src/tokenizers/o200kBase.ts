/**
 * Exact token counts for GPT-4o, GPT-4.1, GPT-5 and the o series. Needs the package `gpt-tokenizer`.
 *
 * @since 0.1.0
 */
import ranks from "gpt-tokenizer/bpeRanks/o200k_base"
import { counter } from "../internal/gptEncoding.ts"

/**
 * Tokens of a text in the encoding `o200k_base`, for `TokenEstimator.learned({ counter: countTokens })`.
 *
 * **Details**
 *
 * Exact for texts of up to 32,768 characters that have a space at least every 256; where they have none, each cut can
 * add a token. Longer texts are counted in eight samples, and scaled. A special token such as `<|endoftext|>` counts as
 * the text that it is. It never throws.
 *
 * **Gotchas**
 *
 * The first call builds the encoding, which takes about 0.1 seconds; with it the module holds 20 MB. A call blocks the
 * thread: typically about 10 milliseconds for 10,000 characters of prose, and at most some 0.2 seconds for any text,
 * such as 32,768 random characters of Thai.
 *
 * @category accessors
 * @since 0.1.0
 */
export const countTokens: (text: string) => number = counter("o200k_base", () => ranks)
