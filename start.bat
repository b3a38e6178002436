@echo off
rem Start Limner's page on Windows, with options of app.py, or run a command: start.bat train mira.toml
rem The first start installs everything into .venv here.
rem LIMNER_TORCH_INDEX names a package index to take torch from instead of the one that suits this machine.
setlocal
set "from=%CD%"
cd /d "%~dp0" || goto failed

rem scripts\install.py runs on any Python; one that Limner runs on too need not be fetched.
set "fits=sys.exit(not (3, 11) <= sys.version_info < (3, 15))"
set "python="
.venv\Scripts\python.exe -c "import sys, pip; %fits%" >nul 2>&1 && set "python=.venv\Scripts\python.exe"
for %%v in (3.13 3.12 3.11 3.14) do if not defined python py -%%v -c "" >nul 2>&1 && set "python=py -%%v"
if not defined python python -c "import sys; %fits%" >nul 2>&1 && set "python=python"
if not defined python uv --version >nul 2>&1 && set "python=uv run --quiet --no-project --python 3.13 python"
if not defined python python -c "import sys; sys.exit(sys.version_info < (3, 8))" >nul 2>&1 && set "python=python"
if not defined python py -c "" >nul 2>&1 && set "python=py"
if not defined python goto no_python

%python% -X utf8 scripts\install.py || goto failed
set "first=%~1"
if defined first if not "%first:~0,1%"=="-" goto command
.venv\Scripts\python.exe -X utf8 app.py %* || goto failed
exit /b 0

:command
set "limner=%CD%\.venv\Scripts\limner.exe"
set "PYTHONUTF8=1"
cd /d "%from%"
"%limner%" %*
exit /b %ERRORLEVEL%

:no_python
echo Limner needs Python 3.11 to 3.14: https://www.python.org/downloads/
echo Check "Add python.exe to PATH" when you install it, then start again.

:failed
pause
exit /b 1
