"""The end of a run of several processes: nobody leaves before the last is done."""

import time

import torch
from speechbrain.utils.distributed import if_main_process
from tiny_training import in_processes

from speechbrain_ext.utils.distributed import leave_group


def _export_late(path):
    if if_main_process():
        time.sleep(0.5)
        path.write_text("whole")
    leave_group()
    assert path.read_text() == "whole"
    assert not torch.distributed.is_initialized()


def test_all_wait_for_the_main_process_and_leave(tmp_path):
    assert in_processes(_export_late, 2, tmp_path / "final") == [0, 0]


def test_alone_there_is_no_group_to_leave():
    leave_group()
    assert not torch.distributed.is_initialized()
