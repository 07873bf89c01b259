# PRO-VPT: so far as the paper says; which of its profiles pays is being measured (docs/evidence/study.md).
_base_ = 'provpt_paper.py'
