from .attention import attention_maps, visit_attention
from .attention_figure import plot_attention
from .relocation import plot_relocation
from .runs import LogError, Run, read_log, run_of

__all__ = [
    'LogError', 'Run', 'attention_maps', 'plot_attention', 'plot_relocation', 'read_log', 'run_of', 'visit_attention'
]
