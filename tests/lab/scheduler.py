"""Autotest's scheduler without its database (Python 2, on the results host): its own manager of drones takes a special task and jobs through
the phases that monitor_db has for them, with the same commands, by its tool on the drone.
"""
import sys
import time

sys.path.insert(0, '/usr/local/autotest/scheduler')
import common  # Autotest's, which makes its packages known.
from autotest.client.shared.settings import settings
from autotest.scheduler import drone_manager
from django.core.management import call_command

ROOT = '/usr/local/autotest/'
AUTOSERV = [ROOT + 'server/autotest-remote', '-p']
HERE = drone_manager.WORKING_DIRECTORY
TASK, JOB, UNIT, FAILED = 'hosts/host1/4-verify', '9-me', '9-me/host1', '10-me/host1'

manager = drone_manager.instance()


def ended(unit, label):
    """What the drone's pidfile says, when it is that the phase has ended."""
    pidfile = manager.get_pidfile_id_from(unit, '.%s_execute' % label)
    manager.register_pidfile(pidfile)
    while True:
        manager.refresh()
        contents = manager.get_pidfile_contents(pidfile, use_second_read=True)
        assert not contents.is_invalid(), contents
        if contents.exit_status is not None:
            return pidfile, contents
        time.sleep(0.2)


def run(command, unit, label, processes=1, **more):
    """A phase, from its start on the drone to its end."""
    manager.refresh()
    manager.execute_command(command, unit, '.%s_execute' % label, processes, **more)
    manager.execute_actions()
    pidfile, contents = ended(unit, label)
    print unit, label, contents.exit_status, contents.num_tests_failed
    return pidfile, contents.process


def verify():
    """A special task, copied to the results host, and to be the results of a job that it failed."""
    manager.attach_file_to_execution(TASK, 'platform=x86\n', TASK + '/host_keyvals/host1')
    _, process = run(AUTOSERV + ['-r', HERE, '-m', 'host1', '--verbose', '-v'], TASK, 'autoserv')
    manager.copy_to_results_repository(process, TASK + '/')
    manager.copy_to_results_repository(process, TASK + '/debug/autoserv.DEBUG', UNIT + '/4-verify')
    manager.copy_results_on_drone(process, TASK + '/', FAILED + '/')
    manager.execute_actions()
    archive(FAILED)


def job():
    """A client's job on a host: with the parser in autoserv while it runs, and the final parse."""
    manager.write_lines_to_file(JOB + '/queue.log.1', ['Queued'])
    manager.attach_file_to_execution(UNIT, 'job_queued=%d\n' % time.time(), UNIT + '/keyval')
    manager.attach_file_to_execution(UNIT, 'platform=x86\n', UNIT + '/host_keyvals/host1')
    control = manager.attach_file_to_execution(UNIT, "job.run_test('sleeptest')\n")
    words = ['-r', HERE, '-m', 'host1', '-u', 'me', '-l', 'a job', '-P', UNIT, '-n', manager.absolute_path(control), '-c']
    _, process = run(AUTOSERV + words, UNIT, 'autoserv')
    manager.write_lines_to_file(UNIT + '/keyval', ['job_finished=%d' % time.time()], paired_with_process=process)
    parse(UNIT)
    archive(UNIT)


def parse(unit):
    words = [ROOT + 'tko/autotest-tko-parse', '--write-pidfile', '-l', '2', '-r', '-o', HERE]
    pidfile, _ = ended(unit, 'autoserv')
    run(words, unit, 'parser', 0, log_file=unit + '/.parse.log', paired_with_pidfile=pidfile)


def archive(unit):
    words = ['--pidfile-label=archiver', '-r', HERE, '--use-existing-results', '--control-filename=control.archive',
             ROOT + 'scheduler/archive_results.control.srv']
    pidfile, _ = ended(unit, 'autoserv')
    run(AUTOSERV + words, unit, 'archiver', log_file=unit + '/.archiving.log', paired_with_pidfile=pidfile)


call_command('syncdb', interactive=False, verbosity=0)
manager.initialize(ROOT + 'results', ['drone1'], settings.get_value('SCHEDULER', 'results_host'))
if 'reparse' in sys.argv:
    parse(UNIT)
else:
    verify()
    job()
manager.shutdown()
