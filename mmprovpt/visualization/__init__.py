from .distribution import plot_distribution

__all__ = ['plot_distribution']
