# VPT: every block keeps its prompts. (Any other fixed distribution: num_tokens as a list in the task's config.)
relocation = None
