"""`velodrome tune`: every technique that applies, in short trials against the recipe as it is.

```text
techniques   what can be changed, where it applies, and what it does to the numbers
bench        one configuration of a recipe, ready to train a few steps by the clock
remote       the same in a process of its own: threads, memory and crashes stay there
measure      two benches take turns; what lies between two equal ones is noise
search       one technique after another, each on top of those that paid; then the whole against the beginning
result       the table, the sentence, the JSON
writing      the tuned recipe
```
"""
