"""Pictures of where prompts go and what attends to them. What draws needs matplotlib, and loads it when it is used."""
import importlib

# Public name → the module that has it.
_HOMES = dict(
    attention_maps='attention', visit_attention='attention', plot_attention='attention_figure',
    plot_prompt_sets='sets', plot_relocation='relocation', plot_training='training', read_training='training',
    Training='training', relocation_image='relocation', LogError='runs', Run='runs', read_log='runs', run_of='runs',
    run_of_periods='runs')

__all__ = [
    'LogError', 'Run', 'Training', 'attention_maps', 'plot_attention', 'plot_prompt_sets', 'plot_relocation',
    'plot_training', 'read_log', 'read_training', 'relocation_image', 'run_of', 'run_of_periods', 'visit_attention'
]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(f'.{_HOMES[name]}', __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
