"""The papers' protocol of experiments: a grid on held-out data, the winner trained anew with several seeds, tested.

Needs no codebase and no Ray; tools/sweep.py hands the trials to Ray Tune.
"""
from .protocol import (
    BASE_LRS,
    WEIGHT_DECAYS,
    Trial,
    check_phases,
    choose_winner,
    final_trials,
    folder_name,
    own_rates,
    phase_options,
    read_task,
    search_trials,
    summarise,
    write_config,
)
from .trial import give_up, read_result, run_trial, state_of

__all__ = [
    'BASE_LRS', 'WEIGHT_DECAYS', 'Trial', 'check_phases', 'choose_winner', 'final_trials', 'folder_name', 'give_up',
    'own_rates', 'phase_options', 'read_result', 'read_task', 'run_trial', 'search_trials', 'state_of', 'summarise',
    'write_config'
]
