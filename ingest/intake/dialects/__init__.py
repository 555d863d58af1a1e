"""From what each kind of client sends to raw events. One module per dialect; the other modules are shared by them."""
